"""What holds for every command."""

import subprocess

from server_process import NARROWS, environment


def test_output_that_nobody_reads_ends_the_command_quietly() -> None:
    command = [*NARROWS, "config", "show"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
