"""Loads the modules that hold agents: those it is told to, never what the network says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mesh.agent import Agent, Skill

SHELL_MODULE = "mesh.skills.shell"
BUILTIN_MODULE = "mesh.skills.builtin"


class BadAgents(Exception):
    """A module cannot be loaded, or holds no agent, or two agents claim one skill."""


@dataclass(frozen=True, slots=True)
class Loaded:
    skills: dict[str, Skill]
    labels: dict[str, str]


def load(modules: Iterable[str], *, allow_shell: bool) -> Loaded:
    """All skills and labels of the agents in these places and the built-in modules.

    A place is a module (`package.module`), one agent in it (`package.module:agent`), or a file
    (`folder/agents.py`). Raises BadAgents.
    """
    names = [BUILTIN_MODULE, *([SHELL_MODULE] if allow_shell else []), *modules]
    if "" not in sys.path:
        sys.path.insert(0, "")  # agents live where the node was started, like `python -m` has it
    agents: list[Agent] = []
    for name in names:
        found = _agents_of(name)
        agents += [agent for agent in found if not any(agent is other for other in agents)]
    return merge(agents)


def merge(agents: Iterable[Agent]) -> Loaded:
    """One table of skills. BadAgents: two have the same skill, or one label two values."""
    skills: dict[str, Skill] = {}
    labels: dict[str, str] = {}
    for agent in agents:
        for name, skill in agent.skills.items():
            if name in skills:
                raise BadAgents(f"skill {name} of agent {agent.name} exists already")
            skills[name] = skill
        for key, value in agent.labels.items():
            if labels.setdefault(key, value) != value:
                raise BadAgents(f"label {key} has two values; run these agents in two workers")
    return Loaded(skills=skills, labels=labels)


def _agents_of(place: str) -> list[Agent]:
    name, _, attribute = place.partition(":")
    try:
        module = _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:  # whatever a foreign module raises on import
        raise BadAgents(f"{name} does not load: {type(error).__name__}: {error}") from error
    found = [
        value
        for key, value in vars(module).items()
        if isinstance(value, Agent) and attribute in ("", key)
    ]
    if not found:
        raise BadAgents(f"{place} has no Agent at its top level")
    return found


def _import_file(path: Path) -> ModuleType:
    # Beside the file lie what it imports, as when Python is given the file to run.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(path.stem)
