"""fastai as its own examples use it; benchmarks/training_peers.py starts this file in another environment.

photos   its tutorial: aug_transforms, vision_learner, fine_tune
mnist    lesson 7 of its course: a small residual network, random crops, one cycle
cifar10  its XResNet, with the crops, mirrors and one cycle of its CIFAR example
"""

from argparse import Namespace
from itertools import pairwise

import fastai
import torch
from fastai.vision import all as vision
from fastai.vision.models.xresnet import xresnet18
from peer import main

CIFAR_STATS = ([0.491, 0.482, 0.447], [0.247, 0.243, 0.261])
MNIST_STATS = ([0.131], [0.308])
WORKERS = 2


def load(task: Namespace, **options: object) -> vision.DataLoaders:
    """The documented way, from files."""
    if (task.root / "val").exists():
        return vision.ImageDataLoaders.from_folder(task.root, valid="val", num_workers=WORKERS, **options)
    return vision.ImageDataLoaders.from_folder(task.root / "train", valid_pct=0.1, seed=0, num_workers=WORKERS, **options)


def photos(task: Namespace, **options: object) -> vision.Learner:
    """From the weights that our recipe starts from, as a file where timm would have downloaded it."""
    dls = load(task, item_tfms=vision.Resize(224), batch_tfms=vision.aug_transforms(), bs=32)
    overlay = {"file": str(task.weights), "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    learner = vision.vision_learner(dls, "tf_efficientnet_lite0", pretrained_cfg_overlay=overlay, **options)
    learner.fine_tune(task.epochs)
    return learner


def mnist(task: Namespace, **options: object) -> vision.Learner:
    item, batch = [vision.CropPad(34), vision.RandomCrop(28)], vision.Normalize.from_stats(*MNIST_STATS)
    dls = load(task, img_cls=vision.PILImageBW, item_tfms=item, batch_tfms=batch, bs=128)
    network = []
    for before, after in pairwise((1, 8, 16, 32, 16)):
        network += [vision.ConvLayer(before, after, stride=2), vision.ResBlock(1, after, after)]
    network += [vision.ConvLayer(16, 10, stride=2), vision.Flatten()]
    learner = vision.Learner(dls, torch.nn.Sequential(*network), **options)
    learner.fit_one_cycle(task.epochs, 0.05)
    return learner


def cifar10(task: Namespace, **options: object) -> vision.Learner:
    item = [vision.CropPad(40), vision.RandomCrop(32), vision.FlipItem(0.5)]
    dls = load(task, item_tfms=item, batch_tfms=vision.Normalize.from_stats(*CIFAR_STATS), bs=128)
    learner = vision.Learner(dls, xresnet18(n_out=10), **options)
    learner.fit_one_cycle(task.epochs, 3e-3, wd=0.4)
    return learner


def train(task: Namespace) -> tuple:
    vision.set_seed(task.seed)
    clock = vision.Callback(after_epoch=task.end_epoch)
    # Without a path, fastai makes a folder `models` in the data set.
    place = {"path": task.out.resolve(), "model_dir": ""}
    learner = {"photos": photos, "mnist": mnist, "cifar10": cifar10}[task.case](
        task, metrics=vision.accuracy, cbs=clock, **place
    )
    learner.save("model")
    files = vision.get_image_files(task.root / task.scored)
    with learner.removed_cbs(clock):  # to fastai, answering is one more epoch
        probabilities, _ = learner.get_preds(dl=learner.dls.test_dl(files))
    return probabilities.numpy(), files, learner.dls.vocab, f"fastai {fastai.__version__}, torch {torch.__version__}"


if __name__ == "__main__":
    main(train)
