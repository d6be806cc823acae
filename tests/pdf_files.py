"""Write small PDF files for tests: each page has its own size, and a black square that grows with its number."""

from __future__ import annotations

from pathlib import Path

# a security handler whose password is nothing that anybody knows (ISO 32000-1, 7.6.3)
_ENCRYPTION = f"<< /Filter /Standard /V 1 /R 2 /O <{'ab' * 32}> /U <{'cd' * 32}> /P -4 >>"


def pdf(*sizes: tuple[float, float], encrypted: bool = False) -> bytes:
    """Return a PDF with one page per size in points."""
    kids = " ".join(f"{3 + 2 * at} 0 R" for at in range(len(sizes)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(sizes)} >>"]
    for number, (width, height) in enumerate(sizes, start=1):
        drawing = f"0 0 {number * 10} {number * 10} re f"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width:g} {height:g}] /Contents {len(objects) + 2} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawing)} >>\nstream\n{drawing}\nendstream")
    file = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(file))
        file += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    security = f"/Encrypt {_ENCRYPTION} /ID [<00> <00>] " if encrypted else ""
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R {security}>>"
    start = len(file)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n{trailer}\nstartxref\n{start}\n%%EOF\n"
    return file + end.encode()


def write_pdf(path: Path, *sizes: tuple[float, float]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pdf(*sizes))
    return path
