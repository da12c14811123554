# No Python itself: one step of a nightly script is, and then it fails.
echo "step one"
opentelemetry-instrument python "${0%/*}/child.py" 0
echo "step two" >&2
exit 4
