"""The command line: `pyfast demo` and `pyfast info`. Typer and rich are imported when it runs, not before."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any


def main() -> None:
    """Run the command line; without the extra ``cli``, only ``pyfast info`` works."""
    if all(importlib.util.find_spec(name) for name in ("typer", "rich")):
        app()()
    elif sys.argv[1:] == ["info"]:
        print("\n".join(describe()))
    else:
        sys.exit("pyfast's command line needs typer and rich: pip install 'pyfast-kernels[cli]'")


def describe() -> list[str]:
    """What is installed and what it runs on, a line each."""
    import torch

    import pyfast
    from pyfast import _C

    gpu = "none"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        gpu = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none"
    return [
        f"pyfast   {pyfast.__version__}, Python {platform.python_version()}",
        f"kernels  {_C.level}, of {', '.join(_C.levels())} that this processor runs",
        f"threads  {torch.get_num_threads()}",
        f"torch    {torch.__version__}",
        f"gpu      {gpu}",
        f"triton   {triton}",
    ]


def app() -> Any:
    """The typer application."""
    import typer
    from rich.console import Console

    from pyfast.demo import SECTIONS

    cli = typer.Typer(help="Exact, fast kernels for methods from research papers.", no_args_is_help=True)

    @cli.command()
    def info() -> None:
        """Show versions, the processor level in use, threads, GPU and Triton."""
        for line in describe():
            typer.echo(line)

    @cli.command()
    def demo(
        section: Annotated[
            str, typer.Argument(help=f"What to show: {', '.join(SECTIONS)}, or all.", metavar="[SECTION]")
        ] = "all",
        plot: Annotated[
            Path, typer.Option(help="Where to write the plot, if matplotlib is there; of all, one each, by its name.")
        ] = Path("pyfast-demo.png"),
        json_path: Annotated[Path | None, typer.Option("--json", help="Where to write all numbers.")] = None,
        quick: Annotated[bool, typer.Option(help="Leave out the races on large inputs.")] = False,
    ) -> None:
        """Show what the kernels do on real weights, images, text and crystals, checked against the reference."""
        if section not in (*SECTIONS, "all"):
            raise typer.BadParameter(f"section must be one of {', '.join(SECTIONS)} or all, got {section!r}")
        for module in ("sklearn", "safetensors", "ase", "pymatgen"):
            if not importlib.util.find_spec(module):
                typer.echo(f"pyfast demo needs {module}: pip install 'pyfast-kernels[demo]'", err=True)
                raise typer.Exit(2)
        console = Console()
        draw = plot if importlib.util.find_spec("matplotlib") else None
        if draw is None:
            console.print("no plot: pip install 'pyfast-kernels[plot]'")
        results = {}
        for name in SECTIONS if section == "all" else (section,):
            picture = draw.with_stem(f"{draw.stem}-{name}") if draw and section == "all" else draw
            results[name] = importlib.import_module(f"pyfast.demo.{name}").run(console, picture, quick)
        if json_path is not None:
            json_path.write_text(json.dumps(results, indent=1) + "\n")
            console.print(f"numbers: {json_path}")
        if not all(result["agrees"] for result in results.values()):
            raise typer.Exit(1)

    return cli


if __name__ == "__main__":
    main()
