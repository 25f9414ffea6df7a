"""Public-domain books as plain text: markers of the source stripped, lines joined, the end held out."""

from pathlib import Path

BOOKS = ("alice-11.txt", "pride-and-prejudice-1342.txt", "war-and-peace.txt", "tinyshakespeare.txt")
HELD_SHARE = 0.02


def load(folder: Path) -> tuple[list[str], list[str]]:
    """Return (training texts, held-out texts), one of each a book: the held-out text is the last 2 %."""
    train, held = [], []
    for name in BOOKS:
        text = body((folder / name).read_text(encoding="utf-8-sig"))
        text = text if "shakespeare" in name else unwrap(text)
        cut = int(len(text) * (1 - HELD_SHARE))
        train.append(text[:cut])
        held.append(text[cut:])
    return train, held


def body(text: str) -> str:
    """The text between Project Gutenberg's start and end markers, or all of it where there are none."""
    text = text.replace("\r\n", "\n")
    start = text.find("*** START OF")
    start = text.find("\n", start) + 1 if start >= 0 else 0
    end = text.find("*** END OF")
    return text[start : end if end >= 0 else len(text)].strip()


def unwrap(text: str) -> str:
    """Join the lines of each paragraph; keep one blank line between paragraphs. Plain quotes replace curly ones."""
    for curly, plain in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"')):
        text = text.replace(curly, plain)
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(part for part in paragraphs if part)
