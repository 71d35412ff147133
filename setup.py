"""Lists the packages: each folder of the repository that is a room of `studio`, with all its sub-packages."""

from setuptools import find_packages, setup

ROOMS = ("training", "composition", "pipelines", "kernels", "ui", "assets")
packages = ["studio", *(f"studio.{name}" for name in find_packages("studio"))]
for room in ROOMS:
    packages += [f"studio.{room}", *(f"studio.{room}.{name}" for name in find_packages(room))]

setup(packages=packages, package_dir={"studio": "studio"} | {f"studio.{room}": room for room in ROOMS})
