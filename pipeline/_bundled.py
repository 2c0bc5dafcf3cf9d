"""Finds the files that travel with the product: the demo's config and its corpus."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def find_bundled(name: str) -> Path:
    """Locate a file of `configs/`, in a checkout and in an installed wheel alike.

    Args:
      name: the file's name inside `configs/`, such as "demo.yaml".
    Returns: the path of an existing file.
    Raises: FileNotFoundError if neither place has it.
    """
    # setup.py maps the top-level configs/ to pipeline/configs/ in a wheel; a checkout has no such
    # folder, so the order below can never pick up a stranger's site-packages/configs.
    places = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = " and ".join(str(place) for place in places)
    raise FileNotFoundError(f"bundled file {name!r} is missing; looked in {looked}; reinstall")
