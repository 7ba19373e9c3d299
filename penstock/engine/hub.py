"""Where a model's files are: a local folder, or a hub id that is downloaded. Knows nothing of what is in them."""

from pathlib import Path

#: The model that is served where none is named (see scripts/train_demo.py).
DEMO = Path(__file__).parent / "demo"
#: Everything a causal LM and its tokenizer need; weights as safetensors only, since pickles can run code.
_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
_WEIGHTS = ["*.safetensors"]


def resolve(model: str, download_dir: str = "", weights: bool = True) -> Path:
    """The folder with the model's files, downloaded first if `model` is a hub id that is not there yet.

    `weights=False` leaves the weights out (dummy weights; a process that only tokenizes).
    Raises FileNotFoundError with a sentence that says what to do.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise FileNotFoundError(f"model {model!r}: no such folder, and not a hub id of the form owner/name")
    return _download(model, download_dir, _FILES + (_WEIGHTS if weights else []))


def _download(model: str, download_dir: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    cache = Path(download_dir).expanduser() if download_dir else None
    try:
        return Path(snapshot_download(model, cache_dir=cache, allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"model {model!r}: not a local folder, and fetching it from the hub failed ({error}); "
            "give a folder, check the id, or set HF_TOKEN if the model is gated"
        ) from error
