#!/usr/bin/env python3
"""Packs files into an image that containerd imports (an OCI layout in a tar file).

usage: image.py REFERENCE OUT.tar ENTRYPOINT SOURCE=TARGET…   files; SOURCE may be ->LINK
       image.py REFERENCE OUT.tar ENTRYPOINT LAYER.tar        a whole layer
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile


def main() -> None:
    reference, out, entrypoint, *files = sys.argv[1:]
    if len(files) == 1 and "=" not in files[0]:
        with open(files[0], "rb") as given:
            pack(reference, out, entrypoint, given.read())
        return
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        made = set()
        for pair in files:
            source, target = pair.split("=", 1)
            parts = target.strip("/").split("/")
            for depth in range(1, len(parts)):
                directory = "/".join(parts[:depth])
                if directory not in made:
                    made.add(directory)
                    entry = tarfile.TarInfo(directory)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
            entry = tarfile.TarInfo("/".join(parts))
            if source.startswith("->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, source[2:]
                tar.addfile(entry)
            else:
                with open(source, "rb") as content:
                    data = content.read()
                entry.size, entry.mode = len(data), 0o755
                tar.addfile(entry, io.BytesIO(data))
    pack(reference, out, entrypoint, layer.getvalue())


def pack(reference: str, out: str, entrypoint: str, plain: bytes) -> None:
    packed = gzip.compress(plain, compresslevel=1, mtime=0)

    blobs = {}

    def blob(media: str, data: bytes) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    def document(media: str, value: dict) -> dict:
        return blob(media, json.dumps(value, sort_keys=True).encode())

    oci = "application/vnd.oci.image"
    config = document(
        f"{oci}.config.v1+json",
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [entrypoint], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
        },
    )
    manifest = document(
        f"{oci}.manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": config,
            "layers": [blob(f"{oci}.layer.v1.tar+gzip", packed)],
        },
    )
    manifest["annotations"] = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}
    index = {"schemaVersion": 2, "manifests": [manifest]}
    with tarfile.open(out, "w") as tar:
        named = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
        named["index.json"] = json.dumps(index).encode()
        named["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        for name, data in sorted(named.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


main()
