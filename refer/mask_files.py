"""The pictures that are masks, as a fingerprint: whether they changed since a file was made from them."""
import hashlib
import json
import os

from refer.table import RefTable


def masks_digest(table: RefTable) -> str:
    """A SHA-256 of names and sizes in bytes of all mask pictures, '' if the masks are in the annotation files.

    An edited picture nearly always has another size, and no content is read, which would take minutes. A missing
    picture counts as one of -1 bytes.
    """
    digest = hashlib.sha256()
    paths = {table.mask_path(row) for row in range(len(table)) if may_have_picture(table, row)} - {""}
    for path in sorted(paths):
        size = os.path.getsize(path) if os.path.isfile(path) else -1
        digest.update(json.dumps(["/".join(path.replace(os.sep, "/").split("/")[-2:]), size]).encode())
    return digest.hexdigest() if paths else ""


def may_have_picture(table: RefTable, row: int) -> bool:
    """Whether a ref's annotation names a picture: cheap, since most annotations are long."""
    return table.texts["masks"][row][:14].startswith('{"mask_path":')
