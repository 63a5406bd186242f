"""Nothing that reads unpickles, evaluates or executes."""

import ast
import pathlib

import recursia

EXECUTES = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch"}
YAML = {"compose", "safe_dump", "YAMLError"}  # which make no objects of what a file names


def test_nothing_that_reads_unpickles_evaluates_or_executes():
    root = pathlib.Path(recursia.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        where = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in EXECUTES:
                found.add((where, called.id))
            if isinstance(called, ast.Attribute) and ast.unparse(called) == "np.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle") == "False", where
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml":
                assert node.attr in YAML, where
            if isinstance(called, ast.Attribute) and called.attr == "exec_module":
                found.add((where, called.attr))
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                found |= {(where, n) for n in names if str(n).partition(".")[0] in UNSAFE}
    # A user's own configuration is Python; what is shipped to others is run by transformers.
    remote = {("convert/remote/modeling_recursia.py", name) for name in ("torch", "torch.nn")}
    assert found == {("presets.py", "exec_module"), *remote}
