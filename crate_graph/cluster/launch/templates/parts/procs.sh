gpus_or_one() {
  if nvidia-smi --list-gpus >/dev/null 2>&1; then echo gpu; else echo 1; fi
}
