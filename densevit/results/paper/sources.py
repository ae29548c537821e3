"""What a sweep used, as entries of a BibTeX file."""

from __future__ import annotations

from collections.abc import Iterable

from densevit.config.run_config import RunConfig

_FIELDS = ("title", "author", "booktitle", "journal", "year", "url")
# Key to kind and fields; the keys are used by `methods`.
ENTRIES: dict[str, tuple[str, dict[str, str]]] = {
    "dosovitskiy2021vit": ("inproceedings", {
        "title": "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        "author": "Dosovitskiy, Alexey and others", "booktitle": "ICLR", "year": "2021"}),
    "wightman2019timm": ("misc", {
        "title": "PyTorch Image Models", "author": "Wightman, Ross", "year": "2019",
        "url": "https://github.com/huggingface/pytorch-image-models"}),
    "loshchilov2019adamw": ("inproceedings", {
        "title": "Decoupled Weight Decay Regularization",
        "author": "Loshchilov, Ilya and Hutter, Frank", "booktitle": "ICLR", "year": "2019"}),
    "wang2021densecl": ("inproceedings", {
        "title": "Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
        "author": "Wang, Xinlong and Zhang, Rufeng and Shen, Chunhua and Kong, Tao and Li, Lei",
        "booktitle": "CVPR", "year": "2021"}),
    "he2020moco": ("inproceedings", {
        "title": "Momentum Contrast for Unsupervised Visual Representation Learning",
        "author": "He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross",
        "booktitle": "CVPR", "year": "2020"}),
    "chen2020mocov2": ("article", {
        "title": "Improved Baselines with Momentum Contrastive Learning",
        "author": "Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming",
        "journal": "arXiv:2003.04297", "year": "2020"}),
    "zhang2018mixup": ("inproceedings", {
        "title": "mixup: Beyond Empirical Risk Minimization",
        "author": "Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David",
        "booktitle": "ICLR", "year": "2018"}),
    "russakovsky2015imagenet": ("article", {
        "title": "ImageNet Large Scale Visual Recognition Challenge",
        "author": "Russakovsky, Olga and others",
        "journal": "International Journal of Computer Vision", "year": "2015"}),
    "hendrycks2021natural": ("inproceedings", {
        "title": "Natural Adversarial Examples",
        "author": "Hendrycks, Dan and Zhao, Kevin and Basart, Steven and Steinhardt, Jacob and "
        "Song, Dawn", "booktitle": "CVPR", "year": "2021"}),
    "hendrycks2021many": ("inproceedings", {
        "title": "The Many Faces of Robustness: A Critical Analysis of Out-of-Distribution "
        "Generalization",
        "author": "Hendrycks, Dan and others", "booktitle": "ICCV", "year": "2021"}),
    "recht2019imagenetv2": ("inproceedings", {
        "title": "Do ImageNet Classifiers Generalize to ImageNet?",
        "author": "Recht, Benjamin and Roelofs, Rebecca and Schmidt, Ludwig and Shankar, Vaishaal",
        "booktitle": "ICML", "year": "2019"}),
    "geirhos2019stylized": ("inproceedings", {
        "title": "ImageNet-trained CNNs are biased towards texture; increasing shape bias improves "
        "accuracy and robustness",
        "author": "Geirhos, Robert and Rubisch, Patricia and Michaelis, Claudio and Bethge, "
        "Matthias and Wichmann, Felix A. and Brendel, Wieland",
        "booktitle": "ICLR", "year": "2019"}),
    "wang2019sketch": ("inproceedings", {
        "title": "Learning Robust Global Representations by Penalizing Local Predictive Power",
        "author": "Wang, Haohan and Ge, Songwei and Lipton, Zachary and Xing, Eric P.",
        "booktitle": "NeurIPS", "year": "2019"}),
    "li2017pacs": ("inproceedings", {
        "title": "Deeper, Broader and Artier Domain Generalization",
        "author": "Li, Da and Yang, Yongxin and Song, Yi-Zhe and Hospedales, Timothy M.",
        "booktitle": "ICCV", "year": "2017"}),
    "taori2020robustness": ("inproceedings", {
        "title": "Measuring Robustness to Natural Distribution Shifts in Image Classification",
        "author": "Taori, Rohan and Dave, Achal and Shankar, Vaishaal and Carlini, Nicholas and "
        "Recht, Benjamin and Schmidt, Ludwig", "booktitle": "NeurIPS", "year": "2020"}),
    "holm1979": ("article", {
        "title": "A Simple Sequentially Rejective Multiple Test Procedure",
        "author": "Holm, Sture", "journal": "Scandinavian Journal of Statistics",
        "year": "1979"}),
    "student1908": ("article", {
        "title": "The Probable Error of a Mean", "author": "Student", "journal": "Biometrika",
        "year": "1908"}),
}  # fmt: skip
DATA = {
    "imagenet": "russakovsky2015imagenet", "imagenet-a": "hendrycks2021natural",
    "imagenet-r": "hendrycks2021many", "imagenet-v2": "recht2019imagenetv2",
    "stylized-imagenet": "geirhos2019stylized", "imagenet-sketch": "wang2019sketch",
    "pacs": "li2017pacs",
}  # fmt: skip


def bibtex(keys: Iterable[str]) -> str:
    """Return the entries of these keys, in the order of the keys."""
    return "\n".join(_entry(key) for key in dict.fromkeys(keys))


def used(configs: Iterable[RunConfig], benchmarks: Iterable[str]) -> list[str]:
    """Return the keys of what these configurations use: network, losses, data and statistics."""
    keys = ["dosovitskiy2021vit", "wightman2019timm", "loshchilov2019adamw"]
    for config in configs:
        if config.cl_mode in ("dense", "joint"):
            keys.append("wang2021densecl")
        if config.cl_mode != "none":
            keys += ["he2020moco", "chen2020mocov2"]
        if config.mixup:
            keys.append("zhang2018mixup")
        keys += [DATA[config.dataset]] if config.dataset in DATA else []
    keys += [DATA[name] for name in benchmarks if name in DATA]
    return list(dict.fromkeys([*keys, "student1908", "holm1979"]))


def _entry(key: str) -> str:
    kind, fields = ENTRIES[key]
    lines = [f"  {name} = {{{{{fields[name]}}}}}," if name == "title" else
             f"  {name} = {{{fields[name]}}}," for name in _FIELDS if name in fields]  # fmt: skip
    return "\n".join([f"@{kind}{{{key},", *lines, "}", ""])
