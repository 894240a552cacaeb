"""Write the encoder of a finished run for other libraries.

python tools/export.py --folder runs/x --to timm encoder.safetensors   a state dict that timm's model of that name takes
python tools/export.py --folder runs/x --to hf folder                  config.json and model.safetensors, as on the hub
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: on a busy machine spinning threads crawl

import evaluate
import recipes

from partwhole.core import checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="PATH", help="of the run")
    parser.add_argument("--to", choices=["timm", "hf"], required=True, help="the layout")
    parser.add_argument("--traceback", action="store_true", help="show where an error was noticed")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file (timm) or the folder (hf) to write")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    recipe = evaluate.read(options.folder)
    evaluate.refuse_unfinished(options.folder)
    from partwhole.vision.exchange import export_hub, export_timm

    root = type(recipe).__module__.split(".")[0]
    encoder = checkpoint.load_encoder(options.folder, allow=(root,))  # the recipe's package runs already
    if options.to == "timm":
        if options.out.is_dir():
            raise recipes.Usage(f"{options.out} is a folder: timm's layout is one file, such as encoder.safetensors")
        line = export_timm(encoder, options.out, size=getattr(recipe, "size", None))
    else:
        if options.out.is_file():
            raise recipes.Usage(f"{options.out} is a file: the hub's layout is a folder")
        line = export_hub(encoder, options.out, size=getattr(recipe, "size", 224))
    print(f"{options.out}: load it with\n  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(recipes.guarded(main))
