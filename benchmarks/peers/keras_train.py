"""Keras as beginners' articles use it; benchmarks/training_peers.py starts this file in another environment.

Three stages of 3×3 convolution, ReLU and 2×2 max-pooling (32, 64, 128 channels), a dense layer of 128, Adam, no augmentation.
The weights of the epoch that was best on validation are kept.
"""

from argparse import Namespace

import keras
import tensorflow as tf
from keras import layers
from peer import main

SIDE = {"photos": 180, "mnist": 28, "cifar10": 32}  # pixels
BATCH = {"photos": 32, "mnist": 128, "cifar10": 128}


def load(task: Namespace, part: str, **options: object) -> tf.data.Dataset:
    """Single images, decoded."""
    folder, size, color = task.root / part, (SIDE[task.case],) * 2, "grayscale" if task.case == "mnist" else "rgb"
    return keras.utils.image_dataset_from_directory(folder, image_size=size, color_mode=color, batch_size=None, **options)


def load_both(task: Namespace) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Batches to train on and to validate on, decoded once and kept in memory."""
    if (task.root / "val").exists():
        both = load(task, "train", seed=0), load(task, "val", shuffle=False)
    else:
        both = load(task, "train", validation_split=0.1, subset="both", seed=0)
    both = both[0].cache().shuffle(len(both[0])), both[1].cache()
    return tuple(part.batch(BATCH[task.case]).prefetch(tf.data.AUTOTUNE) for part in both)


def build(task: Namespace, n_classes: int) -> keras.Model:
    stages = []
    for width in (32, 64, 128):
        stages += [layers.Conv2D(width, 3, activation="relu"), layers.MaxPooling2D()]
    head = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(n_classes, activation="softmax")]
    pixels = keras.Input((SIDE[task.case],) * 2 + ((1,) if task.case == "mnist" else (3,)))
    model = keras.Sequential([pixels, layers.Rescaling(1 / 255), *stages, *head])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(task: Namespace) -> tuple:
    keras.utils.set_random_seed(task.seed)
    images, validation = load_both(task)
    labels = sorted(folder.name for folder in (task.root / "train").iterdir())
    model = build(task, len(labels))
    best = keras.callbacks.EarlyStopping("val_accuracy", patience=task.epochs, restore_best_weights=True)
    clock = keras.callbacks.LambdaCallback(on_epoch_end=task.end_epoch)
    model.fit(images, validation_data=validation, epochs=task.epochs, callbacks=[best, clock], verbose=2)
    model.save(task.out / "model.keras")
    scored = load(task, task.scored, shuffle=False)
    probabilities = model.predict(scored.batch(BATCH[task.case]), verbose=0)
    return probabilities, scored.file_paths, labels, f"Keras {keras.__version__}, {keras.backend.backend()} {tf.__version__}"


if __name__ == "__main__":
    main(train)
