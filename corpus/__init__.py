"""The bundled demo corpus: ten public-domain English novels to train on, two to validate on."""
