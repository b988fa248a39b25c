"""Train the network that the demo prunes, and write it to pyfast/data/digits.safetensors.

    python benchmarks/train_digits.py

A few minutes on one thread. Everything is drawn from one seed: on one machine and torch, the weights come out the same
to the bit (only the order of the notes in the header of the file may differ).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from pyfast.demo import digits

SEED, EPOCHS, RATE, DECAY = 0, 30, 0.1, 0.02
WEIGHTS = Path(__file__).resolve().parents[1] / "pyfast" / "data" / "digits.safetensors"


def trained(seed: int = SEED, epochs: int = EPOCHS) -> torch.nn.Sequential:
    """A network trained from scratch on the training images of the one split.

    The weight decay is high, so that what the network does not need goes to zero and magnitude tells.
    """
    x, y, _, _ = digits.images()
    torch.manual_seed(seed)
    net = digits.network()
    digits.train(net, x, y, epochs=epochs, rate=RATE, decay=DECAY, seed=seed)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    net = trained(epochs=options.epochs)
    x, y, test_x, test_y = digits.images()
    score = digits.accuracy(net, test_x, test_y)
    about = {
        "script": "benchmarks/train_digits.py",
        "seed": str(SEED),
        "epochs": str(options.epochs),
        "torch": torch.__version__,
        "training accuracy": f"{digits.accuracy(net, x, y):.2f}%",
        "test accuracy": f"{score:.2f}%",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, options.output, about)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, {about}")


if __name__ == "__main__":
    main()
