"""What the instructions worker computes: which constraints a response follows, by lm-eval.

Loaded by worker_main by its path, so it imports nothing of posttrain.
"""

# The packages served here ship no types.
# pyright: basic

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

# Kinds whose checkers split text with nltk's punkt_tab, which is data of its own.
_NEED_PUNKT = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
_NO_PUNKT = (
    "needs nltk's punkt_tab data, which is not here: python -m nltk.downloader punkt_tab, "
    "or pip install --no-deps llama-index-core, which carries it"
)


@functools.cache
def checkers() -> Any:
    """lm-eval's IFEval module, its language detector seeded; nothing is downloaded."""
    # Any rank but 0 leaves the download of punkt_tab to rank 0.
    os.environ["LOCAL_RANK"] = "1"
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    carrier = importlib.util.find_spec("llama_index")
    for root in (carrier.submodule_search_locations or ()) if carrier else ():
        nltk.data.path.append(str(Path(root) / "core" / "_static" / "nltk_cache"))
    from lm_eval.tasks.ifeval import utils

    return utils


@functools.cache
def has_punkt() -> bool:
    """Whether nltk finds punkt_tab."""
    import nltk

    checkers()
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def answer_instructions(request: dict[str, Any]) -> Any:
    """`parse` loads what is needed, `kinds` says what there is, `fits` and `check` test them.

    `fits` gives what is wrong with the constraints, or None; `check` the constraints that a
    response follows, strictly and loosely.
    """
    registry = checkers().instructions_registry
    if request["do"] == "parse":
        # Its language profiles are read at the first use.
        return checkers().instructions_registry.instructions.langdetect.detect("so it is") != ""
    if request["do"] == "kinds":
        conflicts = registry.conflict_make(
            {name: set(others) for name, others in registry.INSTRUCTION_CONFLICTS.items()}
        )
        return {
            name: {
                "conflicts": sorted(conflicts[name]),
                "unavailable": unavailable(name),
            }
            for name in registry.INSTRUCTION_DICT
        }
    names, kwargs = request["instruction_id_list"], request["kwargs"]
    if request["do"] == "fits":
        return misfit(registry, names, kwargs)
    if lacking := next((why for name in names if (why := unavailable(name))), None):
        raise LookupError(lacking)
    example = checkers().InputExample(
        key=0, instruction_id_list=names, prompt=request["prompt"], kwargs=kwargs
    )
    strict = checkers().test_instruction_following_strict(example, request["text"])
    loose = checkers().test_instruction_following_loose(example, request["text"])
    return {
        "strict": [bool(one) for one in strict.follow_instruction_list],
        "loose": [bool(one) for one in loose.follow_instruction_list],
    }


def unavailable(name: str) -> str | None:
    """Why a kind of constraint cannot be checked here; None where it can."""
    return f"{name} {_NO_PUNKT}" if name in _NEED_PUNKT and not has_punkt() else None


def misfit(registry: Any, names: list[str], kwargs: list[dict[str, Any]]) -> str | None:
    """What is wrong with a list of constraints; None where each can be checked."""
    for name, given in zip(names, kwargs, strict=True):
        if name not in registry.INSTRUCTION_DICT:
            return f"lm-eval has no instruction {name!r}"
        if why := unavailable(name):
            return why
        given = {key: value for key, value in given.items() if value}
        checker = registry.INSTRUCTION_DICT[name](name)
        try:
            checker.build_description(**given)
            wanted = checker.get_instruction_args_keys()
            checker.check_following("A first answer. And more of it.")
        except Exception as error:
            return f"{name} does not take {given}: {type(error).__name__}: {error}"[:300]
        # Without a value the checker would draw one at random, another at every check.
        if missing := [key for key in wanted if key not in given and key != "prompt"]:
            return f"{name} lacks {', '.join(missing)}"
    return None
