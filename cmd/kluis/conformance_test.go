package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kluis/conformance"
	"kluis/internal/devpki"
)

// The pack is stored through the operator's roles, once; what was interrupted
// goes on.
func TestConformanceSeed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("migrate")
	w.feed()
	certs := filepath.Join(w.dir, "certificates")
	if err := os.Mkdir(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.dir, "conformance.json")
	seed := func(file string) []string {
		return []string{"conformance", "seed", "--certificates", certs, "--gateway-url", "https://127.0.0.1:1", "--issuer-url", "https://127.0.0.1:2",
			"--ca-file", filepath.Join(w.dir, "operator-ca.crt"), "--installation", file}
	}
	refused := func(want string, args []string) {
		t.Helper()
		if code, out, complaint := w.kluis(args...); code == exitOK || !strings.Contains(complaint, want) {
			t.Errorf("exit code %d, %s %s, want %q", code, out, complaint, want)
		}
	}
	refused("certificate of the test supplier north", seed(file))
	strangers, err := devpki.NewCA("strangers")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := strangers.IssueFiles(certs, "north", devpki.Leaf{CommonName: "north"}); err != nil {
		t.Fatal(err)
	}
	refused("not a client certificate of the suppliers' CA", seed(file))
	for _, name := range []string{"north.crt", "north.key"} {
		if err := os.Remove(filepath.Join(certs, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"north", "south", "third"} {
		if _, _, err := w.ca.IssueFiles(certs, name, devpki.Leaf{CommonName: name}); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.count("legal_file") + w.count("supplier") + w.count("sealed_block"); n != 0 {
		t.Fatalf("%d rows are stored by what was refused", n)
	}

	if out := w.must(seed(file)...); !strings.Contains(out, "3 test suppliers, 21 metering points") {
		t.Error(out)
	}
	facts := w.count("legal_file")
	i, err := conformance.LoadInstallation(file)
	if err != nil {
		t.Fatal(err)
	}
	target, err := i.Target()
	if err != nil || len(target.Clients) != 3 || target.Damaged || target.Settled.IsZero() {
		t.Errorf("%+v, %v", target, err)
	}
	pack, err := conformance.New(conformance.Market{Location: w.profile.Location(), RetentionMonths: w.profile.RetentionMonths()}, target.Seeded, target.Seeded)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pack.Points {
		for _, s := range p.Readings {
			if p.Name == "erased" || p.Name == "corrected" {
				continue // which have their own below
			}
			got := w.open(p.EAN.String(), s.Field)
			first, _ := p.Blocks(conformance.Market{Location: w.profile.Location(), RetentionMonths: w.profile.RetentionMonths()})
			for _, b := range first {
				if b.Field == s.Field && (got[b.Day].version != 1 || got[b.Day].Values[0] != b.Values[0]) {
					t.Errorf("%s: %s on %s is %+v", p.Name, b.Field, b.Day, got[b.Day])
				}
			}
		}
		if p.Name == "corrected" {
			first, second := p.Blocks(conformance.Market{Location: w.profile.Location(), RetentionMonths: w.profile.RetentionMonths()})
			if len(second) != 2 || len(first) != 4+3 {
				t.Fatalf("%d blocks, %d of them corrected", len(first), len(second))
			}
			if got := w.open(p.EAN.String(), "import_low")[second[0].Day]; got.version != 2 || got.Values[0] != second[0].Values[0] {
				t.Errorf("the corrected block is %+v", got)
			}
		}
	}
	if v := w.status(); v.Feed.ErasedKeys == 0 {
		t.Error("nothing was erased")
	}

	// Again, as after it was interrupted: no step is taken twice.
	w.must(seed(file)...)
	if n := w.count("legal_file"); n != facts {
		t.Errorf("%d versions of legal files, and %d after seeding again", facts, n)
	}
	refused("it was seeded before", seed(filepath.Join(w.dir, "other.json")))
	if _, err := os.Stat(filepath.Join(w.dir, "other.json")); err == nil {
		t.Error("a file is written for what was refused")
	}

}
