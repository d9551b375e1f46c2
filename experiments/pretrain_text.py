"""Pre-train the embedded text backbone on the public part of the embedded corpus; write it as a Hugging Face folder.

    python experiments/pretrain_text.py OUT [--minutes 45]

One document in twenty is held out whole; the folder keeps the weights with the best held-out loss, in half precision,
and a record of what was done. The learning rate follows the time that is left: the budget is a plain number of minutes.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from fedgen.data.stdlib import public
from fedgen.reproduce.pretraining import Shape, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=45)
    args = parser.parse_args()
    documents = [text for _, text in public()]
    said = {
        "data": "fedgen.data.stdlib.public: public modules of Python's standard library, its documentation topics",
        "data_sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
    }
    print(json.dumps(pretrain(args.out, documents, Shape(), minutes=args.minutes, said=said), indent=1))


if __name__ == "__main__":
    main()
