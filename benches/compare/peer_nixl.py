"""NIXL with its UCX backend, lists prepared once, waiting by polling, which is what its API offers.

The initiator has no progress thread, which is its fastest setting; the target keeps the default.
"""

import logging
import os

import numpy
import peer

logging.disable(logging.INFO)
from nixl_cu12._api import nixl_agent, nixl_agent_config  # noqa: E402


class Nixl:
    def __init__(self, address, size):
        # The target is the process that multiprocessing started.
        initiates = peer.multiprocessing.parent_process() is None
        config = nixl_agent_config(backends=["UCX"], enable_prog_thread=not initiates)
        self.agent = nixl_agent("initiator" if initiates else "target", config)
        self.agent.register_memory([(address, size, 0, "")], "DRAM")

    def metadata(self):
        return self.agent.get_agent_metadata()

    def connect(self, metadata, _address):
        name = self.agent.add_remote_agent(metadata)
        self.remote = name.decode() if isinstance(name, bytes) else name
        self.agent.make_connection(self.remote)

    def prepare(self, op, ours, theirs, length):
        def rows(starts):
            return numpy.array([(int(start), length, 0) for start in starts], dtype=numpy.uint64)

        local = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", rows(ours), "DRAM")
        remote = self.agent.prep_xfer_dlist(self.remote, rows(theirs), "DRAM")
        every = numpy.arange(len(ours), dtype=numpy.int32)
        handle = self.agent.make_prepped_xfer(op.upper(), local, every, remote, every)
        transfer, look = self.agent.transfer, self.agent.check_xfer_state

        def move():
            state = transfer(handle)
            while state == "PROC":
                state = look(handle)
            if state != "DONE":
                raise RuntimeError(f"the transfer ended as {state}")

        return move


if __name__ == "__main__":
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    peer.main(Nixl)
