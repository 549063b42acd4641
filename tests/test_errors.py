"""The tree of errors."""

import inspect
import re

import pytest

from prefanno import errors
from prefanno.errors import EngineBroken, InvalidInput, PrefannoError, QueueFull, StorageFull

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PrefannoError)]
OWN = (InvalidInput, QueueFull, EngineBroken)  # make their texts of something else
CHINESE = re.compile("[\u4e00-\u9fff]")


def _drawn() -> dict[str, str]:
    """Each class in the tree of the module's docstring → the class above it."""
    above: dict[int, str] = {}
    parents = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)(\s|$)", line):
            depth = len(found[1]) // 4
            if depth == 0 and found[2] != "PrefannoError":
                continue
            above[depth] = found[2]
            parents[found[2]] = above[depth - 1] if depth else "Exception"
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    """Every class is drawn, below the class that it inherits from, and none is drawn that is not there."""
    assert _drawn() == {kind.__name__: kind.__base__.__name__ for kind in CLASSES if kind.__base__}
    assert len(CLASSES) > 10


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in OWN], ids=lambda kind: kind.__name__)
def test_every_error_has_an_english_and_a_chinese_text(kind: type[PrefannoError]) -> None:
    """Without texts of its own an error has those of its class; what is given replaces them."""
    error = kind()
    assert str(error) == kind.english and not CHINESE.search(str(error))
    assert error.detail == kind.detail and CHINESE.search(error.detail)
    assert (
        str(
            kind("what", "怎么"),
        ),
        kind("what", "怎么").detail,
    ) == ("what", "怎么")


def test_invalid_input_names_each_field() -> None:
    """Bad input holds its fields, and both texts name every one of them with what is wrong."""
    error = InvalidInput({"seed": ("必须是整数",), "message": ["不能为空", "缺少该字段"]})
    assert error.fields == {"seed": ["必须是整数"], "message": ["不能为空", "缺少该字段"]}
    assert error.detail == "请求参数错误：seed：必须是整数；message：不能为空，缺少该字段"
    assert str(error).startswith("bad input: ") and "seed" in str(error) and "message" in str(error)


def test_a_broken_engine_says_why() -> None:
    """Both texts end with the reason, where there is one."""
    assert [str(EngineBroken()), EngineBroken().detail] == [EngineBroken.english, EngineBroken.detail]
    assert str(EngineBroken("CUDA error")) == f"{EngineBroken.english}: CUDA error"
    assert EngineBroken("CUDA error").detail == f"{EngineBroken.detail}。原因：CUDA error"


def test_a_full_queue_says_when_to_try_again() -> None:
    """After a second, where nothing is known."""
    assert [QueueFull().retry_after_s, QueueFull(7.5).retry_after_s] == [1.0, 7.5]
    assert QueueFull(7.5).detail == QueueFull.detail


def test_errors_know_no_http() -> None:
    """The tree says what happened; which status that is, the web layer decides."""
    source = inspect.getsource(errors).replace(errors.__doc__ or "", "")
    assert not re.search(r"\b[45]\d\d\b|aiohttp", source)
    assert issubclass(StorageFull, PrefannoError)
