"""What each verb does: it reads its options and calls one function."""

from recursia.verbs import costs, files, runs, shown

RUNS = {
    "train": runs.train,
    "eval": runs.evaluate,
    "generate": runs.generate,
    "budget": costs.budget,
    "compile": costs.compile,
    "parity": files.parity,
    "convert recursive": runs.recursive,
    "data prepare": files.prepare,
    "data inspect": files.inspect,
    "presets": shown.presets,
    "fields": shown.fields,
}
