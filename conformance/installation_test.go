package conformance

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kluis/internal/devpki"
)

func TestInstallation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := devpki.NewCA("anybody")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.IssueFiles(dir, "north", devpki.Leaf{CommonName: "north"}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "conformance.json")
	whole := Installation{GatewayURL: "https://gateway", IssuerURL: "https://issuer", CAFile: "ca.crt", Seeded: "2026-11-23",
		Settled: time.Date(2026, time.November, 23, 12, 0, 0, 0, time.UTC), Damaged: true, Suppliers: map[string]Pair{"north": {"north.crt", "north.key"}}}
	if err := whole.Write(file); err != nil {
		t.Fatal(err)
	}
	i, err := LoadInstallation(file)
	if err != nil {
		t.Fatal(err)
	}
	if i.CAFile != filepath.Join(dir, "ca.crt") || i.Suppliers["north"].KeyFile != filepath.Join(dir, "north.key") || i.GatewayURL != whole.GatewayURL || !i.Settled.Equal(whole.Settled) {
		t.Errorf("%+v", i)
	}
	target, err := i.Target()
	if err != nil || target.Clients["north"] == nil || target.Seeded != day(t, "2026-11-23") || !target.Damaged || target.Issuer != whole.IssuerURL {
		t.Errorf("%+v, %v", target, err)
	}
	target.Close()

	for name, spoil := range map[string]func(i *Installation){
		"no such day":        func(i *Installation) { i.Seeded = "2026-02-30" },
		"no authority":       func(i *Installation) { i.CAFile = filepath.Join(dir, "none") },
		"an authority's key": func(i *Installation) { i.CAFile = filepath.Join(dir, "north.key") },
		"no certificate":     func(i *Installation) { i.Suppliers = map[string]Pair{"north": {"none", "none"}} },
	} {
		bad := *i
		spoil(&bad)
		if _, err := bad.Target(); !errors.Is(err, ErrInstallation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"unknown key": `{"gateway":"x"}`, "no JSON": `gateway`, "of another kind": `[]`} {
		bad := filepath.Join(dir, "bad.json")
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadInstallation(bad); !errors.Is(err, ErrInstallation) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadInstallation(filepath.Join(dir, "none.json")); !errors.Is(err, ErrInstallation) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// A pack that was just seeded is waited for.
func TestSettled(t *testing.T) {
	t.Parallel()
	now := time.Now()
	if wait := Settled(now).Sub(now); wait <= shortConsent {
		t.Errorf("settled after %s, and a consent lasts %s", wait, shortConsent)
	}
	asked := make(chan error, 1)
	target := Target{Clients: map[string]*http.Client{}, Settled: now.Add(500 * time.Millisecond)}
	go func() { _, err := Ask(t.Context(), target); asked <- err }()
	if err := <-asked; err == nil || time.Now().Before(target.Settled) {
		t.Errorf("asked too early: %v", err)
	}
}

// The commands to make a request by hand, character by character.
func TestCurl(t *testing.T) {
	t.Parallel()
	pack := seededOn(t, profile(t), day(t, "2026-11-23"), day(t, "2026-11-23"))
	i := Installation{GatewayURL: "https://gw", IssuerURL: "https://is", CAFile: "ca.crt",
		Suppliers: map[string]Pair{"north": {"n.crt", "n.key"}, "south": {"s.crt", "s.key"}, "third": {"t.crt", "t.key"}}}
	const (
		north = `curl -sS --cacert ca.crt --cert n.crt --key n.key`
		token = ` -d grant_type=client_credentials -d client_id=`
		cut   = ` https://is/oauth2/token | sed 's/.*"access_token":"\([^"]*\)".*/\1/')` + "\n"
		asks  = `'https://gw/v1/metering-points/952000000000001016/readings?fields=import_low&from=2026-10-01&purpose=ENERGY_MANAGEMENT&to=2026-10-03'`
		with  = ` -H "Authorization: Bearer $TOKEN"`
	)
	for name, want := range map[string]string{
		"no-token":              north + ` ` + asks,
		"no-token-at-all":       north + ` -H "Authorization: Bearer not-a-token" ` + asks,
		"token-of-others":       `TOKEN=$(curl -sS --cacert ca.crt --cert s.crt --key s.key` + token + `9520000000028` + cut + north + with + ` ` + asks,
		"method-unknown":        `TOKEN=$(` + north + token + `9520000000011` + cut + north + with + ` -X DELETE ` + asks,
		"with-a-body":           `TOKEN=$(` + north + token + `9520000000011` + cut + north + with + ` -X GET -d '{}' ` + asks,
		"several-faults":        "purpose=CURIOSITY&resolution=PT5M",
		"consent-revoked-twice": ` -H 'Idempotency-Key: conformance-consent-revoked-twice' -H "If-Match: $TAG" -X POST `,
	} {
		for _, c := range pack.Cases {
			if c.Name != name {
				continue
			}
			got := i.Curl(pack, c)
			if exact := strings.HasPrefix(want, "curl") || strings.HasPrefix(want, "TOKEN"); exact && got != want || !strings.Contains(got, want) {
				t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
			}
		}
	}
}

// Whatever a gateway answers, the runner makes a failed case of it at most.
func FuzzParseAnswer(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `[]`, `{"series":null}`, `{"series":[{"days":[{"values":[null,"1.000"],"quality":[{"index":0,"count":-1}]}]}],"withheld":[{}]}`,
		`{"granted":[],"stored":[{}]}`, `{"meteringPoints":[{"ean":"9"}],"links":{"next":"x"}}`, `{"type":"urn:kluis:problem:","errors":[{}]}`,
		`{"consents":[{"to":null,"steps":[{}]}]}`,
	} {
		f.Add(200, []byte(s))
		f.Add(404, []byte(s))
	}
	f.Add(200, []byte("record,ean,field,start,value,quality\r\nseries,9,gas\r\n"))
	f.Add(200, []byte("record,ean,field,start,value,quality,expectedCount,deliveredCount\nseries,9,gas,,,,1,1\nvalue,9,gas,2026-03-01T00:00:00Z,1.000,ESTIMATED,,\nproblem,8,,,,,,\n"))
	f.Add(200, []byte(`<feed xmlns="http://www.w3.org/2005/Atom"><entry><link rel="up" href="/IntervalBlock"/><content><IntervalBlock xmlns="http://naesb.org/espi"><IntervalReading/></IntervalBlock></content></entry></feed>`))
	f.Add(200, []byte(`{"meteringPoints":[{"ean":"9","problem":{}}],"done":1,"cursor":null}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		for _, media := range []string{"application/json", mediaTable, mediaFeed} {
			a, _, err := parseAnswer(status, http.Header{"Content-Type": {media}}, body)
			if err != nil {
				continue
			}
			if d := differences(a, a); len(d) != 0 {
				t.Fatalf("an answer differs from itself: %v", d)
			}
			_ = a.Summary()
		}
	})
}

// Whatever a stream holds, it is read or refused.
func FuzzStream(f *testing.F) {
	f.Add([]byte(`{"type":"begin","query":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`+"\n"+`{"type":"point","ean":"9"}`+"\n"+`{"type":"progress","cursor":"x"}`+"\n"+`{"type":"end","complete":true,"manifest":"a.b.c"}`+"\n"), 0)
	f.Add([]byte("record,ean,cursor,manifest\r\nbegin,,,query=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\nproblem,9,,\r\nprogress,,x,\r\nend,,,m\r\n"), 1)
	f.Add([]byte(`{"type":"point"}`+"\n"), 0)
	f.Fuzz(func(t *testing.T, body []byte, stop int) {
		for _, read := range []func(*reading) error{
			func(r *reading) error { return r.lines(bytes.NewReader(body), stop) },
			func(r *reading) error { return r.table(bytes.NewReader(body), stop) },
		} {
			r := &reading{}
			if err := read(r); err == nil && len(r.points) > 0 && r.chain == nil {
				t.Fatal("metering points before the first line")
			}
		}
	})
}
