# Sourced by the other scripts. Finds Python, makes .venv and keeps it as pyproject.toml and requirements.lock say.
# After `prepare_venv` the variable python holds the full path of the environment's interpreter.
# PYTHON=/path/to/python3.x chooses the interpreter for a new environment.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"

say() { printf '%s\n' "$*" >&2; }

# Prints the first interpreter that is new enough and can make environments.
find_python() {
  local candidate found='' lacking=''
  for candidate in ${PYTHON:+"$PYTHON"} python3.14 python3.13 python3.12 python3.11 python3 python; do
    found=$(command -v "$candidate" 2>/dev/null) || continue
    "$found" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null || continue
    if "$found" -c 'import ensurepip, sqlite3, ssl, venv' </dev/null 2>/dev/null; then
      printf '%s\n' "$found"
      return 0
    fi
    lacking=${lacking:-$found}
  done
  if [ -n "$lacking" ]; then
    say "$lacking cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"
  else
    say "Python 3.11 or newer was not found. On Debian and Ubuntu: apt-get install python3 python3-venv"
    say "Elsewhere set PYTHON=/path/to/python3."
  fi
  return 1
}

# What the environment was made from; it is remade or brought up to date when this changes.
venv_stamp() {
  { printf '%s\n' "$root"; cat "$root/pyproject.toml" "$root/requirements.lock"; } | "$1" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), sys.version.split()[0])'
}

prepare_venv() {
  local found
  if ! "$python" -c 'import pip' </dev/null 2>/dev/null; then
    found=$(find_python) || return 1
    say "Making a virtual environment in .venv with $("$found" --version) ($found)."
    rm -rf "$venv"
    "$found" -m venv "$venv" </dev/null || return 1
  fi
  if [ "$(cat "$venv/made-from" 2>/dev/null)" != "$(venv_stamp "$python")" ]; then
    say "Installing what requirements.lock names into .venv: about 110 MB of packages the first time, 1 to 3 minutes."
    rm -f "$venv/made-from"
    (
      cd "$root" || exit 1
      export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
      pip=("$python" -m pip install --quiet --constraint requirements.lock)
      "${pip[@]}" setuptools && "${pip[@]}" --no-build-isolation --editable '.[dev,desk]'
    ) </dev/null || { say "The installation failed; what pip said is above."; return 1; }
    venv_stamp "$python" >"$venv/made-from"
    say "The environment is ready."
  fi
}
