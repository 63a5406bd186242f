export XLA_FLAGS='--a=1 --b='"'"'$HOME'"'"''
/env/bin/recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' --workdir=gs://b/r --coordinator=127.0.0.1:8476 --num_processes=2 --process_id=0 &
/env/bin/recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' --workdir=gs://b/r --coordinator=127.0.0.1:8476 --num_processes=2 --process_id=1 &
wait
