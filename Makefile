# Two commands for newcomers: `make demo` and `make test`.  Both make .venv themselves.
# For administrators: `make install`, see README; portable make, OpenBSD's included.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# What `make install` makes; all below DESTDIR, if that is given, for those who make packages.
DESTDIR ?=
PREFIX ?= /usr/local
MANDIR ?= $(PREFIX)/man
RCDIR ?= /etc/rc.d
PIPFLAGS ?=
EXTRAS ?=
LIB = $(PREFIX)/lib/hactl
LIBEXEC = $(PREFIX)/libexec/hactl
EXAMPLES = $(PREFIX)/share/examples/hactl

.PHONY: demo lint check test soak bench clean install uninstall dist

demo: $(STAMP)
	$(BIN)/hactl demo

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -q -n 3 -m "not service and not long"

# Real servers have real deadlines: what fails beside others has to pass when it runs alone.
test: lint
	$(BIN)/pytest -q -n 4 -m "not service"
	$(BIN)/pytest -q -n 3 --dist loadfile -m service -rs || \
	    { echo "once more, those that failed, one after another"; \
	      $(BIN)/pytest -q --last-failed --last-failed-no-failures none -m service -rs; }

soak: $(STAMP)
	$(BIN)/python -m hactl.sim.chance --count $${SCHEDULES:-20000} --keep tests/scenarios
	$(BIN)/python -m hactl.lab.siege --count $${EVENTS:-100000}

bench: $(STAMP)
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

# The programs have a private environment in LIB, so nothing of theirs meets what else is installed.
install:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: hactl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	umask 022 && new="$(DESTDIR)$(LIB).new" && rm -rf "$$new" && $(PYTHON) -m venv "$$new" && \
	    "$$new/bin/python3" -m pip install -q --disable-pip-version-check $(PIPFLAGS) ".$(EXTRAS)" && \
	    find "$$new/bin" -type f -exec rm -f {} + && rm -rf "$$new/share" "$(DESTDIR)$(LIB)" && \
	    mv "$$new" "$(DESTDIR)$(LIB)"
	umask 022 && mkdir -p "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/sbin" \
	    "$(DESTDIR)$(LIBEXEC)" "$(DESTDIR)$(EXAMPLES)" "$(DESTDIR)$(RCDIR)" \
	    "$(DESTDIR)$(MANDIR)/man5" "$(DESTDIR)$(MANDIR)/man8"
	for program in bin/hactl=hactl.cli.main sbin/hactld=hactl.daemon.main; do \
	    file="$(DESTDIR)$(PREFIX)/$${program%%=*}"; \
	    printf '#!%s -I\nfrom %s import main\n\nmain()\n' "$(LIB)/bin/python3" "$${program#*=}" \
	        >"$$file" && chmod 755 "$$file" || exit 1; \
	done
	install -m 755 hactl/relayd/hactl-verdict "$(DESTDIR)$(LIBEXEC)/"
	install -m 644 etc/hactl.yaml etc/relayd.conf "$(DESTDIR)$(EXAMPLES)/"
	install -m 644 man/*.5 "$(DESTDIR)$(MANDIR)/man5/"
	install -m 644 man/*.8 "$(DESTDIR)$(MANDIR)/man8/"
	sed 's|/usr/local|$(PREFIX)|' rc.d/hactld >"$(DESTDIR)$(RCDIR)/hactld"
	chmod 755 "$(DESTDIR)$(RCDIR)/hactld"

# Takes what install made and nothing else: neither hactl.yaml nor what hactld keeps.
uninstall:
	@links=$$(find "$(DESTDIR)$(LIBEXEC)" -type l 2>/dev/null); [ -z "$$links" ] || { \
	    echo "make: relayd may use" $$links >&2; \
	    echo "make: and takes hosts whose script is missing for down; see hactl hook remove" >&2; \
	    exit 1; }
	rm -rf "$(DESTDIR)$(LIB)" "$(DESTDIR)$(LIB).new"
	rm -f "$(DESTDIR)$(PREFIX)/bin/hactl" "$(DESTDIR)$(PREFIX)/sbin/hactld" \
	    "$(DESTDIR)$(LIBEXEC)/hactl-verdict" "$(DESTDIR)$(EXAMPLES)/hactl.yaml" \
	    "$(DESTDIR)$(EXAMPLES)/relayd.conf" \
	    "$(DESTDIR)$(RCDIR)/hactld"
	for page in man/*; do \
	    rm -f "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}"; \
	done
	-rmdir "$(DESTDIR)$(LIBEXEC)" "$(DESTDIR)$(EXAMPLES)" 2>/dev/null

dist: $(STAMP)
	$(BIN)/python -m build -q --outdir dist .

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: hactl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "make: $(PYTHON) cannot make a virtual environment: install the package python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
