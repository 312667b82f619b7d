"""The classic first convolutional network, written for Keras 3, trained on MNIST and exported as ONNX, to be adopted.

    KERAS_BACKEND=torch python benchmarks/keras_digits.py MNIST lenet.onnx

MNIST is a folder with train/<digit>/*.png and test/<digit>/*.png. Needs keras, pillow, and torch with onnxscript, or
tensorflow with tf2onnx: in an environment of their own, ConvServe needs none of them.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers
from PIL import Image

EPOCHS = 4  # a minute each on two cores that others used too


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images in 0…1, float32 (n, 28, 28, 1), and their digits."""
    paths = sorted(folder.glob("[0-9]/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
    return pixels[..., np.newaxis].astype("float32") / 255, np.array([int(path.parent.name) for path in paths])


def make_network() -> keras.Model:
    """Three stages of convolution and pooling, then two dense layers."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def main(data: Path, out: Path) -> None:
    keras.utils.set_random_seed(0)
    network = make_network()
    network.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(*read_digits(data / "train"), batch_size=128, epochs=EPOCHS, verbose=2)
    images, digits = read_digits(data / "test")
    right = int((network.predict(images, batch_size=256, verbose=0).argmax(axis=1) == digits).sum())
    print(f"Keras {keras.__version__} on {keras.backend.backend()}: {right} of {len(digits)} right")
    network.export(out, format="onnx", verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
