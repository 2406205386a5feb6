"""Small files of the formats that a library is made of, what a page holds, and a web server on this machine."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medical_assistant.library.pages import Page

# A line of a PDF: (size of the font in points, text). Bold from 20 points on.
PdfLine = tuple[float, str]


def make_pdf(pages: Sequence[Sequence[PdfLine]], title: str = "") -> bytes:
    """Return a PDF of these pages, each line 1.4 times its size below the one before; an empty text leaves a gap."""
    objects: list[bytes] = [b"", b""]  # the catalog and the tree of pages, below
    kids = []
    fonts = b"<< /F1 3 0 R /F2 4 0 R >>"
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold >>")
    for lines in pages:
        height, content = 800.0, []
        for size, text in lines:
            height -= 1.4 * size
            escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            font = "F2" if size >= 20 else "F1"
            content.append(f"BT /{font} {size} Tf 1 0 0 1 50 {height:.1f} Tm ({escaped}) Tj ET")
        stream = "\n".join(content).encode("latin-1", "replace")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font %s >> /Contents %d 0 R >>"
            % (fonts, len(objects))
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    objects.append(b"<< /Title (%s) >>" % title.encode("latin-1"))
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return bytes(out) + trailer % (len(objects) + 1, len(objects), start)


_SUMMARY = """<h3>What is gout?</h3><p>Gout is a <a href="https://medlineplus.gov/arthritis.html">type of
arthritis</a>. It hurts.</p><h3>What are the symptoms of gout?</h3><p>The symptoms may include:</p>
<ul><li>Pain</li><li>Swelling</li></ul><p>NIH: National Institute of Arthritis</p>"""
MEDLINEPLUS_XML = f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE health-topics SYSTEM "https://medlineplus.gov/xml/mplus_topics.dtd">
<health-topics total="2" date-generated="11/28/2026 02:30:34">
<health-topic meta-desc="Gout" title="Gout" url="https://medlineplus.gov/gout.html" id="75" language="English"
 date-created="01/07/2003">
<also-called>Gouty arthritis</also-called><also-called>Podagra</also-called>
<full-summary>{html.escape(_SUMMARY)}</full-summary>
<group url="https://medlineplus.gov/bones.html" id="15">Bones</group>
</health-topic>
<health-topic title="Gota" url="https://medlineplus.gov/spanish/gout.html" id="76" language="Spanish"
 date-created="01/07/2003"><full-summary>&lt;p&gt;La gota es dolorosa.&lt;/p&gt;</full-summary></health-topic>
</health-topics>"""


def outline(page: Page) -> dict[str, list[str]]:
    """Return heading -> lines: "> " leads into a list, "- " is an item."""
    return {
        section.heading: [("> " if line.leads else "- " if line.item else "") + line.text for line in section.lines]
        for section in page.sections
    }


@contextmanager
def web_server(pages: Mapping[str, tuple[int, Mapping[str, str], bytes]]) -> Iterator[str]:
    """Yield the address of a server that answers path -> (status, headers, body), and 404 for other paths."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
