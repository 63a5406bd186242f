"""How often each token goes round: depth policies, one a file; `policy` says what each offers."""
