"""Nothing that reads unpickles, evaluates or executes."""

import ast
import pathlib

import recursia

EXECUTES = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch"}
# What imports by a name that is computed: of files of the package, and of a user's own parts.
IMPORTS = {
    *("__init__.py", "dotted.py", "kinds.py", "modules.py", "evaluate/parity.py"),
    *("preflight/kept.py", "data/named.py"),
}
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


def test_few_modules_import_by_a_name_that_is_computed():
    """What a run's directory names goes through one of them, which looks where a module lies."""
    root = pathlib.Path(recursia.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                is_fixed = isinstance(node.args[0], ast.Constant)
                found |= set() if is_fixed else {str(path.relative_to(root))}
    assert found == IMPORTS
