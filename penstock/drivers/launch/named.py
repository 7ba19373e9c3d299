"""Launchers by the names that they have on the command line."""

from typing import Literal

from penstock.drivers.launch.base import Launcher, LaunchError
from penstock.drivers.launch.local import LocalLauncher


async def open_launcher(
    name: Literal["local", "ray"], *, ray_address: str = "", ray_placement: Literal["spread", "pack"] = "spread"
) -> Launcher:
    """A launcher to be closed in the end; what begins with `ray_` is for that one alone (see `RayLauncher.connect`).
    Raises LaunchError."""
    if name == "local":
        return LocalLauncher()
    try:
        from penstock.drivers.launch.ray import RayLauncher
    except ModuleNotFoundError as error:
        raise LaunchError(f"the launcher `ray` needs Ray ({error}): pip install 'penstock[ray]'") from None
    return await RayLauncher.connect(ray_address, ray_placement)
