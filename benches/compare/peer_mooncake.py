"""Mooncake's transfer engine over tcp, with its synchronous calls.

A batch has at most 1024 spans: longer ones are refused by the default settings, and the connection may not recover.
"""

import peer
from mooncake.engine import TransferEngine

BATCH = 1024


class Mooncake:
    def __init__(self, address, size):
        self.engine = TransferEngine()
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("initialize failed")
        if self.engine.register_memory(address, size) != 0:
            raise RuntimeError("register_memory failed")

    def metadata(self):
        return "127.0.0.1:%d" % self.engine.get_rpc_port()

    def connect(self, metadata, _address):
        self.remote = metadata

    def prepare(self, op, ours, theirs, length):
        ours, theirs = [int(start) for start in ours], [int(start) for start in theirs]
        reads = op == "read"
        one = self.engine.transfer_sync_read if reads else self.engine.transfer_sync_write
        many = self.engine.batch_transfer_sync_read if reads else self.engine.batch_transfer_sync_write
        batches = [
            (ours[at : at + BATCH], theirs[at : at + BATCH], [length] * len(ours[at : at + BATCH]))
            for at in range(0, len(ours), BATCH)
        ]

        def move():
            if len(ours) == 1:
                codes = [one(self.remote, ours[0], theirs[0], length)]
            else:
                codes = [many(self.remote, *batch) for batch in batches]
            if any(code != 0 for code in codes):
                raise RuntimeError(f"the transfer ended with {codes}")

        return move


if __name__ == "__main__":
    peer.main(Mooncake)
