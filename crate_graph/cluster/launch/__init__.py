"""What an operator's launchers are made of: one place renders all of launch/ (but local.sh and the README)."""
