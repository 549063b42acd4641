"""What a text must be to be stored: visible, and free of what databases and files cannot hold."""

from prefanno.rows import Fault


def fault(text: str) -> Fault | None:
    """What is wrong with the text, with the cure; None where nothing is."""
    if not text.strip():
        return Fault("is empty", "不能为空")
    if "\0" in text:
        return Fault("holds the NUL character (\\u0000); remove it", "不能包含 NUL 字符（\\u0000），请删除")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return Fault(
            "holds half a UTF-16 surrogate pair; use valid Unicode",
            "包含不成对的 UTF-16 代理字符，请使用有效的 Unicode 文本",
        )
    return None
