# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made by openssl."""

from pathlib import Path

from lab.shell import sh

EC = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


class Authority:
    """Signs certificates. `subject` is a CN, or "" for none."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        sh(
            f"openssl req -x509 {EC} -days 30 -subj /CN={name} "
            "-addext keyUsage=critical,keyCertSign,cRLSign "
            f"-keyout {self.key} -out {self.cert}"
        )

    def sign(
        self, name: str, subject: str, addresses: str, days: int = 60
    ) -> tuple[Path, Path]:
        """Return a certificate and its key, for server and client, for these
        addresses."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request = self.folder / f"{name}.csr"
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName=critical,{addresses}\n"
            "extendedKeyUsage=serverAuth,clientAuth\n"
            "authorityKeyIdentifier=keyid\n"
        )
        named = f"/CN={subject}" if subject else "/"
        sh(f"openssl req {EC} -subj {named} -keyout {key} -out {request}")
        sh(
            f"openssl x509 -req -in {request} -CA {self.cert} -CAkey {self.key} "
            f"-CAcreateserial -days {days} -extfile {extensions} -out {cert}"
        )
        return cert, key
