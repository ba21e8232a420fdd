"""Makes digits.npz from scikit-learn's copy of the UCI handwritten digits (CC BY 4.0, see digits.LICENSE.txt).

    python -m latentlm.data.embedded.make_digits [OUTPUT]

scikit-learn is needed only here. Scans (1797, 8, 8) uint8 in 0..16, labels (1797,) uint8, in scikit-learn's order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main(output: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = digits.images.astype(np.uint8)
    assert scans.shape == (1797, 8, 8)
    assert scans.max() == 16
    np.savez_compressed(output, scans=scans, labels=digits.target.astype(np.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("digits.npz"))
