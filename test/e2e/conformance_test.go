package e2e

import (
	"crypto/tls"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kluis/conformance"
)

// packTarget is the conformance pack of a world, reached through clients that
// hold every answer to the contract. What a demo leaves to the operator's own
// tests is done here: the block that is to be damaged is.
func (w *world) packTarget(t testing.TB) (*conformance.Pack, conformance.Target) {
	t.Helper()
	i, err := conformance.LoadInstallation(filepath.Join(w.state, conformance.InstallationName))
	if err != nil {
		t.Fatal(err)
	}
	target, err := i.Target()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(target.Close)
	pack, err := conformance.Ask(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range pack.Suppliers {
		pair, err := tls.LoadX509KeyPair(i.Suppliers[s.Name].CertificateFile, i.Suppliers[s.Name].KeyFile)
		if err != nil {
			t.Fatal(err)
		}
		c := w.caller(t, s.GLN.String(), &pair)
		target.Clients[s.Name] = c.http
	}
	for _, p := range pack.Points {
		w.secrets.add("an EAN", p.EAN.String())
	}
	return pack, target
}

// Every case of the conformance pack is answered as it must be, by the real
// programs, through the public API.
func TestConformance(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	pack, target := w.packTarget(t)
	damaged := 0
	for _, p := range pack.Points {
		if p.Damaged == "" {
			continue
		}
		f, ok := w.profile(t).Field(p.Damaged)
		if !ok {
			t.Fatal(p.Damaged)
		}
		t.Cleanup(w.keep(t, "ean", p.EAN.Int64(), "sealed_block"))
		w.sql(t, 1, `UPDATE sealed_block SET ciphertext = set_byte(ciphertext, 20, get_byte(ciphertext, 20) # 1) WHERE ean = $1 AND field = $2 AND day = $3`,
			p.EAN.Int64(), int(f.Code), p.DamagedOn.String())
		damaged++
	}
	target.Damaged = damaged > 0
	ran := 0
	err := conformance.Run(t.Context(), pack, pack.Cases, target, func(r conformance.Result) {
		ran++
		if r.Outcome != conformance.Pass {
			t.Errorf("%s %s (%s):\n%s", r.Outcome, r.Case, r.Interaction, strings.Join(r.Differences[:min(20, len(r.Differences))], "\n"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if ran != len(pack.Cases) || ran < 100 {
		t.Errorf("%d cases of %d were run", ran, len(pack.Cases))
	}
}

// A wrong answer, or a wrong expectation, is reported, and nothing else is.
func TestConformanceCanFail(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	pack, target := w.packTarget(t)
	cases := slices.Clone(pack.Cases)
	at := func(name string) *conformance.Case {
		i := slices.IndexFunc(cases, func(c conformance.Case) bool { return c.Name == name })
		if i < 0 {
			t.Fatal(name)
		}
		return &cases[i]
	}
	wrong := map[string]string{
		"daily-reads":            `import_low (nl-daily, P1D) on `,
		"switch-old-supplier":    "want OPTED_OUT",
		"metering-point-unknown": "problem: is metering-point-not-found, want not-found",
		"access-consent-revoked": "and nothing was wanted",
		"list":                   "missing, want electricity CONSENT",
	}

	series := slices.Clone(at("daily-reads").Want.Readings.Series)
	days := slices.Clone(series[0].Days)
	zero := "0.000"
	days[1].Values = []*string{&zero}
	series[0].Days = days
	readings := *at("daily-reads").Want.Readings
	readings.Series = series
	at("daily-reads").Want.Readings = &readings

	withheld := *at("switch-old-supplier").Want.Readings
	withheld.Withheld = slices.Clone(withheld.Withheld)
	withheld.Withheld[0].Reason = "OPTED_OUT"
	at("switch-old-supplier").Want.Readings = &withheld

	at("metering-point-unknown").Want.Problem = "not-found"

	access := *at("access-consent-revoked").Want.Access
	access.Granted = access.Granted[1:]
	at("access-consent-revoked").Want.Access = &access

	list := slices.Clone(at("list").Want.List)
	list = append(list, conformance.Listed{EAN: "952000000000001016", Commodity: "electricity", LegalBases: []string{"CONSENT"}})
	at("list").Want.List = list

	err := conformance.Run(t.Context(), pack, cases, target, func(r conformance.Result) {
		text, want := wrong[r.Case]
		switch {
		case want && (r.Outcome != conformance.Fail || !strings.Contains(strings.Join(r.Differences, "\n"), text)):
			t.Errorf("%s is %s: %v, want %q", r.Case, r.Outcome, r.Differences, text)
		case !want && r.Outcome == conformance.Fail:
			t.Errorf("%s: %v", r.Case, r.Differences)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The command that a supplier's developer is shown.
func TestConformanceCommands(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	var results []conformance.Result
	out := w.kluis(t, "conformance", "run", "--json", "--ready-file", w.readyFile())
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) < 100 {
		t.Fatalf("%d results: %v", len(results), err)
	}
	for _, r := range results {
		if want := !strings.HasPrefix(r.Case, "damaged"); (r.Outcome == conformance.Pass) != want || (r.Outcome == conformance.Skipped) == want {
			t.Errorf("%+v", r)
		}
	}
	out = w.kluis(t, "conformance", "run", "--case", "spring-*", "--case", "erased")
	if !strings.Contains(out, "PASS  spring-quarters\n") || !strings.Contains(out, "PASS  erased\n") || !strings.HasSuffix(out, "\n6 passed, 0 failed, 0 left out.\n") {
		t.Error(out)
	}
	for text, args := range map[string][]string{
		"952000000000001061":               {},
		"TOKEN=$(curl ":                    {"--case", "switch-read-old-supplier"},
		`"reason": "CONSENT_REVOKED"`:      {"--case", "consent-revoked", "--json"},
		"must be answered 401 unauthentic": {"--case", "no-token"},
	} {
		if out := w.kluis(t, append([]string{"conformance", "list"}, args...)...); !strings.Contains(out, text) {
			t.Errorf("list %v: no %q in\n%s", args, text, out)
		}
	}

	// As if it had been seeded two months before: other days are asked for.
	i, err := conformance.LoadInstallation(filepath.Join(w.state, conformance.InstallationName))
	if err != nil {
		t.Fatal(err)
	}
	i.Seeded = dayOf(i.Seeded).AddMonths(-2).String()
	b, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	other := writeTemp(t, "installation.json", string(b))
	printed, err := w.tryKluis(t.Context(), "conformance", "run", "--installation", other, "--case", "hours-granted", "--case", "no-token")
	if exitCodeOf(err) != 1 || !strings.Contains(printed, "FAIL  hours-granted") || !strings.Contains(printed, "PASS  no-token") ||
		!strings.Contains(printed, "interactionId") || !strings.Contains(err.Error(), "1 of 2 cases were not answered as they must be") {
		t.Errorf("%v\n%s", err, printed)
	}
	i.IssuerURL = "https://127.0.0.1:1"
	if b, err = json.Marshal(i); err != nil {
		t.Fatal(err)
	}
	nobody := writeTemp(t, "nobody.json", string(b))
	for name, c := range map[string]struct {
		code int
		args []string
		want string
	}{
		"nobody there":                {4, []string{"run", "--installation", nobody}, "does not answer"},
		"no such case":                {2, []string{"run", "--case", "nothing"}, "there is no case nothing"},
		"no ready file":               {2, []string{"run", "--ready-file", other}, "no ready file"},
		"no folder":                   {1, []string{"run", "--state", t.TempDir()}, "no such file"},
		"two":                         {2, []string{"run", "--state", w.state, "--installation", other}, "can't be used together"},
		"not a file of installations": {1, []string{"list", "--installation", w.readyFile()}, "unknown field"},
	} {
		if complaint := w.kluisFails(t, c.code, append([]string{"conformance"}, c.args...)...); !strings.Contains(complaint, c.want) {
			t.Errorf("%s: %s", name, complaint)
		}
	}
}
