"""The control plane: etcd, the API server, the controllers and the scheduler, on loopback."""

import os
import secrets
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.e2e.api import Api
from tests.e2e.programs import Program, run, until

NODE = "xelink-e2e"
NFD_NAMESPACE = "node-feature-discovery"

# Who speaks to the API server: user and groups. NFD's are what their service accounts would be.
_USERS = {
    "admin": ("admin", "system:masters"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "nfd-master": (f"system:serviceaccount:{NFD_NAMESPACE}:nfd-master", "system:serviceaccounts"),
    "nfd-worker": (f"system:serviceaccount:{NFD_NAMESPACE}:nfd-worker", "system:serviceaccounts"),
}


def free_port() -> int:
    """Give a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Cluster:
    """A control plane that runs; `work` holds its files, `logs` what its programs say."""

    work: Path
    logs: Path
    programs: list[Program] = field(default_factory=list)
    url: str = ""
    api: Api = field(init=False)

    def start(self) -> "Cluster":
        """Start every program of it; each is ready when this returns."""
        etcd = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        self._run(
            "etcd",
            f"--data-dir={self.work / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )
        self._start_api_server(etcd)
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('admin')}",
            f"--service-account-private-key-file={self.work / 'accounts.key'}",
            f"--root-ca-file={self.work / 'api' / 'apiserver.crt'}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
        )
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('admin')}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={free_port()}",
        )
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.api.wait(account, bool, "the controllers make the default service account")
        return self

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as an administrator; give what it printed."""
        return run("kubectl", f"--kubeconfig={self.kubeconfig('admin')}", *arguments, stdin=stdin)

    def apply(self, *files: Path) -> None:
        """Apply manifests as they are."""
        self.kubectl("apply", *(f"--filename={file}" for file in files))

    def kubeconfig(self, user: str) -> Path:
        """Give the file with which a user reaches the API server."""
        return self.work / f"{user}.kubeconfig"

    def stop(self) -> None:
        """Stop every program of it, the last one first, and at once: nothing of it is kept."""
        self.api.close()
        for program in reversed(self.programs):
            program.stop(signal.SIGKILL)

    def _start_api_server(self, etcd: str) -> None:
        key = self.work / "accounts.key"
        public = self.work / "accounts.pub"
        _key_pair(key, public)
        tokens = {user: secrets.token_hex() for user in _USERS}
        listed = self.work / "tokens.csv"
        listed.write_text(
            "".join(
                f'{tokens[user]},{name},{user},"{groups}"\n'
                for user, (name, groups) in _USERS.items()
            )
        )
        port = free_port()
        self.url = f"https://127.0.0.1:{port}"
        certificates = self.work / "api"
        server = self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={certificates}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={listed}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
        )
        ca = certificates / "apiserver.crt"

        def certified() -> bool:
            server.check()
            return ca.exists()

        until(certified, lambda: f"the API server's certificate; {server.tail()}")
        for user, token in tokens.items():
            self.kubeconfig(user).write_text(_KUBECONFIG.format(url=self.url, ca=ca, token=token))
        self.api = Api(self.url, tokens["admin"], ca)

        def ready() -> bool:
            server.check()
            return self.api.ready()

        until(ready, "the API server is ready")

    def _run(self, name: str, *arguments: str) -> Program:
        program = Program(self.logs, name, [name, *arguments]).start()
        self.programs.append(program)
        return program


_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: e2e, cluster: {{server: "{url}", certificate-authority: {ca}}}}}]
users: [{{name: e2e, user: {{token: {token}}}}}]
contexts: [{{name: e2e, context: {{cluster: e2e, user: e2e}}}}]
current-context: e2e
"""


def _key_pair(private: Path, public: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def data(*parts: str) -> Path:
    """Give a file that came with the programs, as NFD's own manifests."""
    return Path(os.environ["E2E_DATA"], *parts)
