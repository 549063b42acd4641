"""What a text must be to be stored: visible, and free of what databases and files cannot hold."""


def fault(text: str) -> str | None:
    """What is wrong with the text, in Chinese, with the cure; None where nothing is."""
    if not text.strip():
        return "不能为空"
    if "\0" in text:
        return "不能包含 NUL 字符（\\u0000），请删除"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "包含不成对的 UTF-16 代理字符，请使用有效的 Unicode 文本"
    return None
