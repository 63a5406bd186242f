"""Who reads may leave: what is said is lost then, a product is missed."""

import os
import subprocess
import sys

import pytest

START = "import sys\nfrom recursia import __main__, cli, streams\n\ndef verb(given):\n"
END = "\n\ncli._command = verb\nsys.exit(__main__.main())\n"
PRINTS = "    print('product')\n    return 0"
TRAINS = """    streams.print_nothing_of_note()
    for number in range(9):
        print('line', number)
        print('line', number, file=sys.stderr)
    open(sys.argv[1], 'w').write('checkpoint')
    return 0"""


def run(body, *arguments, shell="", **variables):
    """Runs a command that has `body` for a verb, in a shell's redirections."""
    command = f'exec "$0" -c "$1" "${{@:2}}" {shell}'
    typed = ["bash", "-c", command, sys.executable, START + body + END, *arguments]
    env = {**os.environ, **variables}
    return subprocess.run(typed, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("stream", ["", "2"])
def test_a_run_whose_reader_left_goes_on_to_its_end(tmp_path, stream):
    read, write = os.pipe()
    os.close(read)
    code = START + TRAINS + END
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")],
        **({"stdout": write, "stderr": write} if stream else {"stdout": write}),
    )
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "saved").read_text() == "checkpoint"


def test_a_product_that_nobody_reads_ends_with_141():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", START + PRINTS + END]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    assert run(PRINTS, shell=">&-").returncode == 141
    assert run(PRINTS).stdout == "product\n"


def test_a_product_that_has_no_place_is_told():
    done = run(PRINTS, shell=">/dev/full")
    assert done.returncode == 6
    assert done.stderr == "recursia: standard output: cannot be written (No space left on device)\n"


def test_a_missing_stream_is_no_place_for_files(tmp_path):
    body = "    print(open(sys.argv[1], 'w').fileno() > 2, file=sys.stderr)\n    return 0"
    assert run(body, str(tmp_path / "file"), shell="<&- >&-").stderr == "True\n"


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_text_that_an_encoding_lacks_is_escaped(variables):
    body = "    print('\\u00e9 \\udcff')\n    print('\\u00e9', file=sys.stderr)\n    return 0"
    done = run(body, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9 \\udcff\n", "\\xe9\n")


def test_a_refusal_is_one_line_though_threads_of_libraries_go_on():
    # As those that read ahead or save: they would speak in the midst of the interpreter's end.
    body = """    import concurrent.futures, threading, time
    from recursia.errors import DataError
    pool = concurrent.futures.ThreadPoolExecutor()
    late = lambda: (time.sleep(0.3), pool.submit(print))
    threading.Thread(target=late).start()
    raise DataError('other data')"""
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "recursia: other data\n")
