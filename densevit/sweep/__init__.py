"""From a sweep file to runs that are executed: spec -> grid -> plan -> apply -> launch."""
