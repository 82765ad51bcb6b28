package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"kluis/internal/devpki"
)

const gatewayYAML = `listen: 127.0.0.1:0
metrics_listen: 127.0.0.1:0
public_url: https://localhost:8443
tls:
  certificate_file: pki/gateway.crt
  key_file: pki/gateway.key
  ca_file: /etc/suppliers.crt
database_url: postgres://kluis_gateway@/kluis?host=/run/postgresql
database_password_file: secrets/db
profile_file: nl.yaml
seal_keys_file: seal.pem
cursor_keys_file: secrets/cursors
issuers:
  - url: https://localhost:8444
    audience: urn:kluis:gateway
    jwks_file: jwks.json
  - url: https://login.example.com/realm
    audience: urn:kluis:gateway
    jwks_url: https://login.example.com/realm/jwks
    ca_file: extern.crt
    max_lifetime: 600s
cryptoservers:
  addresses: ["127.0.0.1:9001", "127.0.0.1:9002"]
  tls:
    certificate_file: pki/client.crt
    key_file: pki/client.key
    ca_file: pki/operator.crt
limits: {requests_per_second: 50, streams: 2, suppliers: {"8712423000014": {requests_per_second: 300, burst: 600}}}
`

const cryptoserverYAML = `id: cs1
listen: 127.0.0.1:0
tls: {certificate_file: a.crt, key_file: a.key, ca_file: ca.crt}
allow:
  Open: [gateway]
  Status: [gateway, issuer]
profile_file: nl.yaml
seal_keys_file: seal.pem
issuers: [{url: "https://localhost:8444", audience: "urn:kluis:gateway", jwks_file: jwks.json}]
token: {issuer: "https://localhost:8444", audience: "urn:kluis:gateway"}
module: /usr/lib/softhsm/libsofthsm2.so
tokens:
  open: [{label: open, pin_file: open.pin}]
  sign: {label: sign, pin_file: sign.pin, workers: 4}
probe_key_file: probe.bin
key_cache: {size: 10}
call_timeout: 3s
stuck_limit: 5
renew_after: 40000
seal_rate: 3000
points_per_token: 50000
journal_dir: journal
journal_days: 7
`

// staffYAML are the settings of a cryptoserver that signs employees' tokens.
const staffYAML = `operator_gln: "8712423010208"
identity_providers:
  - url: https://login.example.com/realm
    audience: kluis-portal
    jwks_file: idp.json
    role_claim: groups
    roles: {agent: [kcc], supervisor: [kcc-lead, kcc-night], auditor: [privacy]}
  - url: https://login.example.com/other
    audience: kluis-portal
    jwks_file: other.json
    role_claim: roles
    roles: {agent: [kcc]}
    max_age: 1h
`

func write(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	t.Parallel()
	path := write(t, "gateway.yaml", gatewayYAML, 0o644)
	dir := filepath.Dir(path)
	g, err := Load[Gateway](path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ got, want string }{
		{g.TLS.CertificateFile, dir + "/pki/gateway.crt"},
		{g.TLS.CAFile, "/etc/suppliers.crt"},
		{g.DatabasePasswordFile, dir + "/secrets/db"},
		{g.CursorKeysFile, dir + "/secrets/cursors"},
		{g.Issuers[0].JWKSFile, dir + "/jwks.json"},
		{g.Issuers[1].JWKSURL, "https://login.example.com/realm/jwks"},
		{g.Issuers[1].CAFile, dir + "/extern.crt"},
		{g.Cryptoservers.TLS.KeyFile, dir + "/pki/client.key"},
		{time.Duration(g.RequestTimeout).String(), "10s"},
		{fmt.Sprint(g.Limits.RequestsPerSecond, g.Limits.Streams, g.Limits.Suppliers), "50 2 map[8712423000014:{300 600}]"},
		{g.Issuers[0].Lifetime().String(), "5m0s"},
		{g.Issuers[1].Lifetime().String(), "10m0s"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}

	cpath := write(t, "cs.yaml", cryptoserverYAML, 0o644)
	cs, err := Load[Cryptoserver](cpath)
	if err != nil {
		t.Fatal(err)
	}
	if want := (KeyCache{10, Duration(5 * time.Minute)}); cs.KeyCache != want {
		t.Errorf("key cache %v, want %v", cs.KeyCache, want)
	}
	if cs.Tokens.Open[0].Workers != 0 || cs.Tokens.Sign.Workers != 4 || cs.CallTimeout != Duration(3*time.Second) || cs.StuckLimit != 5 || cs.RenewAfter != 40000 || cs.SealRate != 3000 || cs.PointsPerToken != 50000 {
		t.Errorf("workers %d and %d, call timeout %v, stuck limit %d, renewal after %d, seal rate %d, points per token %d", cs.Tokens.Open[0].Workers, cs.Tokens.Sign.Workers, cs.CallTimeout, cs.StuckLimit, cs.RenewAfter, cs.SealRate, cs.PointsPerToken)
	}
	if want := filepath.Dir(cpath) + "/journal"; cs.JournalDir != want || cs.JournalDays != 7 {
		t.Errorf("journal of %d days in %s, want %s", cs.JournalDays, cs.JournalDir, want)
	}
	if want := filepath.Dir(cpath) + "/sign.pin"; cs.Tokens.Sign.PINFile != want {
		t.Errorf("path behind a pointer: %s, want %s", cs.Tokens.Sign.PINFile, want)
	}
	if want := filepath.Dir(cpath) + "/open.pin"; cs.Tokens.Open[0].PINFile != want {
		t.Errorf("path in a list: %s, want %s", cs.Tokens.Open[0].PINFile, want)
	}
}

func TestWriteThenLoad(t *testing.T) {
	t.Parallel()
	g, err := Load[Gateway](write(t, "g.yaml", gatewayYAML, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	cs, err := Load[Cryptoserver](write(t, "c.yaml", cryptoserverYAML, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	op := Operator{ProfileFile: "/p", SealKeysFile: "/s"}
	is := IssuerProcess{Listen: ":0", URL: g.PublicURL, TLS: g.TLS, DatabaseURL: g.DatabaseURL,
		SealKeysFile: "/s", JWKSFile: "/j", Cryptoservers: g.Cryptoservers}
	dir := t.TempDir()
	roundTrip(t, filepath.Join(dir, "g.yaml"), g)
	roundTrip(t, filepath.Join(dir, "c.yaml"), cs)
	roundTrip(t, filepath.Join(dir, "o.yaml"), op)
	roundTrip(t, filepath.Join(dir, "i.yaml"), is)

	g.Listen = ""
	if err := Write(filepath.Join(dir, "bad.yaml"), g); err == nil {
		t.Error("an incomplete configuration was written")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("%d files left, want 4 (%v)", len(left), err)
	}
}

func roundTrip[T interface{ Validate() error }](t *testing.T, path string, v T) {
	t.Helper()
	for range 2 { // the second replaces the first
		if err := Write(path, v); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load[T](path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, v) {
		t.Errorf("read back\n%+v\nwant\n%+v", got, v)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown key":           {"profile_file:", "profil_file:", `[10:1] unknown field "profil_file"`},
		"unknown nested key":    {"  key_file: pki/gateway", "  key_path: pki/gateway", "[6:3] unknown field"},
		"repeated key":          {"profile_file: nl.yaml", "profile_file: a\nprofile_file: b", "[11:1] mapping key \"profile_file\" already defined"},
		"wrong type":            {"listen: 127.0.0.1:0", "listen: [1]", "[1:"},
		"duration without unit": {"600s", "600", "[21:19] not a duration"},
		"duration of nothing":   {"600s", `""`, "[21:19] not a duration"},
		"duration too long":     {"600s", "2h", "issuers[1].max_lifetime: must be"},
		"negative timeout":      {"profile_file:", "request_timeout: -1s\nprofile_file:", "request_timeout: must be"},
		"zero timeout":          {"profile_file:", "request_timeout: 0s\nprofile_file:", "request_timeout: must be"},
		"missing":               {"seal_keys_file: seal.pem\n", "", "seal_keys_file: is missing"},
		"negative limit":        {"streams: 2", "streams: -2", "limits.streams: must be"},
		"too many of others":    {"streams: 2", "unrelated_burst: 1000001", "limits.unrelated_burst: must be"},
		"others too fast":       {"streams: 2", "unrelated_per_second: -1", "limits.unrelated_per_second: must be"},
		"no such limit":         {"streams: 2", "stream: 2", "unknown field"},
		"a rate of somebody":    {`"8712423000014"`, `"somebody"`, "limits.suppliers.somebody: must be a GLN"},
		"half a rate":           {", burst: 600", "", "limits.suppliers.8712423000014: needs"},
		"too fast":              {"requests_per_second: 50", "requests_per_second: 1e7", "limits.requests_per_second: must be"},
		"no cursor keys":        {"cursor_keys_file: secrets/cursors\n", "", "cursor_keys_file: is missing"},
		"no port":               {"metrics_listen: 127.0.0.1:0", "metrics_listen: 127.0.0.1", "metrics_listen: must be host:port"},
		"port too big":          {"metrics_listen: 127.0.0.1:0", "metrics_listen: 127.0.0.1:65536", "metrics_listen: must be host:port"},
		"plain http":            {"url: https://localhost:8444", "url: http://localhost:8444", "issuers[0].url: must be an https URL"},
		"issuer twice":          {"https://login.example.com/realm\n", "https://localhost:8444\n", "issuers[1].url: is repeated"},
		"two sources of keys":   {"    jwks_url:", "    jwks_file: x\n    jwks_url:", "issuers[1]: give jwks_file or jwks_url, not both"},
		"fetched without a CA":  {"    ca_file: extern.crt\n", "", "issuers[1].ca_file: is missing"},
		"no keys at all":        {"    jwks_file: jwks.json\n", "", "issuers[0]: give jwks_file or jwks_url"},
		"no cryptoserver":       {`["127.0.0.1:9001", "127.0.0.1:9002"]`, "[]", "cryptoservers.addresses: is missing"},
		"cryptoserver twice":    {`"127.0.0.1:9002"`, `"127.0.0.1:9001"`, "cryptoservers.addresses[1]: is repeated"},
		"cryptoserver port 0":   {`"127.0.0.1:9002"`, `"127.0.0.1:0"`, "cryptoservers.addresses[1]: must be host:port"},
		"two documents":         {"profile_file: nl.yaml", "profile_file: nl.yaml\n---\nx: 1", "more than one YAML document"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Count(gatewayYAML, c.old) < 1 {
				t.Fatal("the case changes nothing")
			}
			_, err := Load[Gateway](write(t, "gateway.yaml", strings.Replace(gatewayYAML, c.old, c.new, 1), 0o644))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if !strings.Contains(err.Error(), "gateway.yaml") {
				t.Errorf("the error does not name the file: %v", err)
			}
		})
	}
}

func TestLoadSaysEverythingAtOnce(t *testing.T) {
	t.Parallel()
	_, err := Load[Gateway](write(t, "g.yaml", "listen: x\n", 0o644))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, key := range []string{"listen:", "metrics_listen:", "tls.key_file:", "database_url:", "issuers:", "cryptoservers.tls.ca_file:"} {
		if !strings.Contains(err.Error(), "\n  "+key) {
			t.Errorf("%s is not in %v", key, err)
		}
	}
}

func TestLoadOddFiles(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{
		"absent": filepath.Join(t.TempDir(), "none.yaml"),
		"folder": t.TempDir(),
		"empty":  write(t, "e.yaml", "", 0o644),
		"huge":   write(t, "h.yaml", "#"+strings.Repeat("x", maxFile), 0o644),
	} {
		if _, err := Load[Gateway](path); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func manyTokens(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("{label: open-%d, pin_file: open.pin}", i))
	}
	return "[" + strings.Join(list, ", ") + "]"
}

func TestCryptoserverRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown method":   {"Open: [gateway]", "Opne: [gateway]", "allow.Opne: no such method"},
		"empty identity":   {"Open: [gateway]", `Open: [""]`, "allow.Open: a client identity is empty"},
		"fetches keys":     {"jwks_file: jwks.json", "jwks_url: https://x/jwks, ca_file: x", "issuers[0]: a cryptoserver never fetches keys"},
		"no roles":         {"  open: [{label: open, pin_file: open.pin}]\n  sign: {label: sign, pin_file: sign.pin, workers: 4}", "  {}", "tokens: name the token"},
		"pin missing":      {"pin_file: sign.pin, ", "", "tokens.sign.pin_file: is missing"},
		"probe missing":    {"probe_key_file: probe.bin", "", "probe_key_file: is missing"},
		"issues no issuer": {`token: {issuer: "https://localhost:8444", `, `token: {`, "token.issuer: must be"},
		"accepts no one":   {"issuers: [{", "#issuers: [{", "issuers: name at least one"},
		"cache size":       {"size: 10", "size: 0", "key_cache.size: must be"},
		"label twice":      {"label: sign", "label: open", "tokens.sign.label: is that of tokens.open[0]"},
		"label in a list":  {"{label: open, pin_file: open.pin}", "{label: open, pin_file: a}, {label: open, pin_file: b}", "tokens.open[1].label: is that of tokens.open[0]"},
		"label missing":    {"label: open, ", "", "tokens.open[0].label: is missing"},
		"many tokens":      {"[{label: open, pin_file: open.pin}]", manyTokens(17), "tokens.open: has 17 tokens, at most 16"},
		"seal twice":       {"sign: {label: sign, pin_file: sign.pin, workers: 4}", "seal: [{label: a, pin_file: a}]", "seal"},
		"workers":          {"workers: 4", "workers: 65", "tokens.sign.workers: must be from 1 to 64"},
		"call timeout":     {"call_timeout: 3s", "call_timeout: 2m", "call_timeout: must be"},
		"seal rate":        {"seal_rate: 3000", "seal_rate: 2000000", "seal_rate: must be"},
		"points per token": {"points_per_token: 50000", "points_per_token: -1", "points_per_token: must be"},
		"no journal":       {"journal_dir: journal\n", "", "journal_dir: is missing"},
		"journal days":     {"journal_days: 7", "journal_days: 4000", "journal_days: must be"},
		"stuck limit":      {"stuck_limit: 5", "stuck_limit: -1", "stuck_limit: must be"},
		"renewal":          {"renew_after: 40000", "renew_after: 999", "renew_after: must be 0"},
		"bad id":           {"id: cs1", "id: a b", "id: must be"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Count(cryptoserverYAML, c.old) != 1 {
				t.Fatal("the case changes nothing")
			}
			_, err := Load[Cryptoserver](write(t, "cs.yaml", strings.Replace(cryptoserverYAML, c.old, c.new, 1), 0o644))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestTakeStepNeedsIssuers: a server that only seals verifies access tokens too,
// where steps are taken by them, or manifests signed.
func TestTakeStepNeedsIssuers(t *testing.T) {
	t.Parallel()
	seals := strings.NewReplacer("open: [{label: open, pin_file: open.pin}]", "seal: {label: seal, pin_file: seal.pin}", "issuers: [{", "#issuers: [{").Replace(cryptoserverYAML)
	if _, err := Load[Cryptoserver](write(t, "cs.yaml", seals, 0o644)); err != nil {
		t.Errorf("without such steps: %v", err)
	}
	for _, method := range []string{"TakeStep", "TakeSupplierStep", "SignManifest", "FindIndex"} {
		takes := strings.Replace(seals, "Open: [gateway]", method+": [gateway]", 1)
		if _, err := Load[Cryptoserver](write(t, "cs.yaml", takes, 0o644)); err == nil || !strings.Contains(err.Error(), "issuers: name at least one") {
			t.Errorf("with %s: %v", method, err)
		}
	}
}

func TestStaff(t *testing.T) {
	t.Parallel()
	path := write(t, "cs.yaml", cryptoserverYAML+staffYAML, 0o644)
	c, err := Load[Cryptoserver](path)
	if err != nil {
		t.Fatal(err)
	}
	first, second := c.IdentityProviders[0], c.IdentityProviders[1]
	if first.JWKSFile != filepath.Dir(path)+"/idp.json" || first.Age() != 12*time.Hour || second.Age() != time.Hour || len(first.Roles.Supervisor) != 2 {
		t.Errorf("%+v", c.IdentityProviders)
	}
	roundTrip(t, path, c)

	staff := func(s string) string {
		return strings.Replace(s, "jwks_file: jwks.json", "jwks_file: jwks.json, staff: true", 1)
	}
	for name, c := range map[string]struct{ yaml, old, new, want string }{
		"whole":                      {cryptoserverYAML + staffYAML, "id: cs1", "id: cs1", ""},
		"tokens that name employees": {staff(cryptoserverYAML), "id: cs1", "id: cs1\noperator_gln: \"8712423010208\"", ""},
		"employees of nobody":        {staff(cryptoserverYAML), "id: cs1", "id: cs1", "operator_gln: must be a GLN"},
		"an operator, no employees":  {cryptoserverYAML, "id: cs1", "id: cs1\noperator_gln: \"8712423010208\"", "operator_gln: says whose employees"},
		"operator too short":         {cryptoserverYAML + staffYAML, "8712423010208", "871242301020", "operator_gln: must be a GLN"},
		"operator with a letter":     {cryptoserverYAML + staffYAML, "8712423010208", "871242301020x", "operator_gln: must be a GLN"},
		"no operator":                {cryptoserverYAML + staffYAML, "operator_gln: \"8712423010208\"\n", "", "operator_gln: must be a GLN"},
		"nothing is signed":          {cryptoserverYAML + staffYAML, "  sign: {label: sign, pin_file: sign.pin, workers: 4}\n", "", "identity_providers: are for a server that signs"},
		"plain http":                 {cryptoserverYAML + staffYAML, "https://login.example.com/realm", "http://login.example.com/realm", "identity_providers[0].url: must be"},
		"provider twice":             {cryptoserverYAML + staffYAML, "/other", "/realm", "identity_providers[1].url: is repeated"},
		"no audience":                {cryptoserverYAML + staffYAML, "    audience: kluis-portal\n    jwks_file: idp", "    jwks_file: idp", "identity_providers[0].audience: is missing"},
		"no keys":                    {cryptoserverYAML + staffYAML, "    jwks_file: idp.json\n", "", "identity_providers[0].jwks_file: is missing"},
		"keys fetched":               {cryptoserverYAML + staffYAML, "jwks_file: idp.json", "jwks_url: https://login.example.com/jwks", "unknown field"},
		"no claim":                   {cryptoserverYAML + staffYAML, "    role_claim: groups\n", "", "identity_providers[0].role_claim: is missing"},
		"no role":                    {cryptoserverYAML + staffYAML, "{agent: [kcc]}", "{}", "identity_providers[1].roles: name the values"},
		"unknown role":               {cryptoserverYAML + staffYAML, "auditor:", "admin:", "unknown field"},
		"a value of two roles":       {cryptoserverYAML + staffYAML, "[privacy]", "[privacy, kcc]", "identity_providers[0].roles: a value is there twice"},
		"a value of nothing":         {cryptoserverYAML + staffYAML, "[privacy]", `[""]`, "identity_providers[0].roles: a value is empty"},
		"a week without signing in":  {cryptoserverYAML + staffYAML, "max_age: 1h", "max_age: 168h", "identity_providers[1].max_age: must be"},
	} {
		if strings.Count(c.yaml, c.old) != 1 {
			t.Errorf("%s: the case changes nothing", name)
		}
		_, err := Load[Cryptoserver](write(t, "cs.yaml", strings.Replace(c.yaml, c.old, c.new, 1), 0o644))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}

	gateway := strings.Replace(gatewayYAML, "jwks_file: jwks.json", "jwks_file: jwks.json\n    staff: true", 1)
	both := strings.Replace(gateway, "realm/jwks\n", "realm/jwks\n    staff: true\n", 1)
	pinned := strings.Replace(strings.Replace(both, "jwks_url: https://login.example.com/realm/jwks", "jwks_file: other.json", 1), "    ca_file: extern.crt\n", "", 1)
	fetched := strings.Replace(gatewayYAML, "realm/jwks\n", "realm/jwks\n    staff: true\n", 1)
	for yaml, want := range map[string]string{
		both + "operator_gln: \"8712423010208\"\n":    "issuers[1].staff: is set on another issuer",
		pinned + "operator_gln: \"8712423010208\"\n":  "issuers[1].staff: is set on another issuer",
		fetched + "operator_gln: \"8712423010208\"\n": "issuers[1].staff: whoever answers at jwks_url",
		gateway + "operator_gln: \"8712423010208\"\n": "",
		gateway: "operator_gln: must be a GLN",
		gatewayYAML + "operator_gln: \"8712423010208\"\n": "operator_gln: says whose employees",
	} {
		_, err := Load[Gateway](write(t, "g.yaml", yaml, 0o644))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestReadSecret(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"1234", "1234\n", "1234\r\n"} {
		got, err := ReadSecret(write(t, "pin", content, 0o600))
		if err != nil || string(got) != "1234" {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
	for _, content := range []string{"", "\n", "a\nb\n", "a\x00b"} {
		if _, err := ReadSecret(write(t, "pin", content, 0o400)); err == nil {
			t.Errorf("%q: accepted", content)
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644, 0o610} {
		path := write(t, "pin", "geheim", mode)
		_, err := ReadSecret(path)
		if err == nil || !strings.Contains(err.Error(), "chmod 600 '"+path+"'") || strings.Contains(err.Error(), "geheim") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

func TestDSN(t *testing.T) {
	t.Parallel()
	pw := write(t, "pw", "p@ss:/?#'\\ \n", 0o600)
	for _, c := range []struct{ url, file, want string }{
		{"postgres://r@/db?host=/run/pg", "", "postgres://r@/db?host=%2Frun%2Fpg&sslmode=disable"},
		{"postgres:///db?host=/run/pg&user=r", "", "postgres://r@/db?host=%2Frun%2Fpg&sslmode=disable"},
		{"postgres://r@db.example:5432/db", "", "postgres://r@db.example:5432/db?sslmode=verify-full"},
		{"postgres://r@127.0.0.1/db", "", "postgres://r@127.0.0.1/db?sslmode=verify-full"},
		{"postgres://r@localhost/db?sslmode=disable", "", "postgres://r@localhost/db?sslmode=disable"},
		{"postgres://r@/db?host=a,b&sslmode=verify-ca", "", "postgres://r@/db?host=a%2Cb&sslmode=verify-ca"},
		{"postgres://r@h/db", pw, "postgres://r:p%40ss%3A%2F%3F%23%27%5C%20@h/db?sslmode=verify-full"},
	} {
		got, err := DSN(c.url, c.file)
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", c.url, got, err, c.want)
		}
	}
	for _, bad := range []string{
		"", "mysql://r@h/db", "postgres:r@h/db", "postgres://h/db", "postgres://r@h", "postgres://r@/db",
		"postgres://r:geheim@h/db", "postgres://r@h/db?password=geheim", "postgres://r@h/db?user=geheim",
		"postgres://r@h/db?sslmode=disable", "postgres://r@h/db?sslmode=require", "postgres://r@h/db?sslmode=prefer",
		"postgres://r@/db?host=/run/pg,geheim&sslmode=disable", "postgres://r@localhost/db?hostaddr=192.0.2.1&sslmode=disable",
		"postgres://r@h/db?host=geheim", "postgres://r@h/db?sslmode=verify-full&sslmode=disable", "postgres://r@h:geheim/db",
	} {
		if dsn, err := DSN(bad, ""); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %s, %v", bad, dsn, err)
		}
	}
	if _, err := DSN("postgres://r@h/db", write(t, "pw", "x", 0o644)); err == nil {
		t.Error("a password everybody can read was used")
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ca, err := devpki.NewCA("operator")
	must(err)
	other, err := devpki.NewCA("other")
	must(err)
	caFile, otherFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "other.crt")
	must(os.WriteFile(caFile, ca.PEM(), 0o644))
	must(os.WriteFile(otherFile, other.PEM(), 0o644))
	files := func(ca *devpki.CA, name string, l devpki.Leaf) TLS {
		crt, key, err := ca.IssueFiles(dir, name, l)
		must(err)
		return TLS{crt, key, caFile}
	}
	server := files(ca, "server", devpki.Leaf{CommonName: "server", Hosts: []string{"localhost"}})
	client := files(ca, "client", devpki.Leaf{CommonName: "gateway"})
	stranger := files(other, "stranger", devpki.Leaf{CommonName: "gateway"})
	trustsOther := client
	trustsOther.CAFile = otherFile

	sc, err := ServerTLS(server)
	must(err)
	for name, c := range map[string]struct {
		files  TLS
		change func(*tls.Config)
		ok     bool
	}{
		"a client of the authority":  {client, nil, true},
		"of another authority":       {stranger, nil, false},
		"trusts another authority":   {trustsOther, nil, false},
		"a server's own certificate": {server, nil, true},
		"no certificate":             {client, func(c *tls.Config) { c.Certificates = nil }, false},
		"TLS 1.2":                    {client, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cc, err := ClientTLS(c.files)
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(cc)
			}
			cc.ServerName = "localhost"
			if got := handshake(t, sc, cc); (got == nil) != c.ok {
				t.Errorf("handshake: %v", got)
			}
		})
	}

	old := files(ca, "old", devpki.Leaf{CommonName: "old", NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	bareKey := client
	bareKey.KeyFile = filepath.Join(dir, "open.key")
	raw, err := os.ReadFile(client.KeyFile)
	must(err)
	must(os.WriteFile(bareKey.KeyFile, raw, 0o640))
	must(os.Chmod(bareKey.KeyFile, 0o640))
	mixed := client
	mixed.KeyFile = server.KeyFile
	notCA := client
	notCA.CAFile = client.CertificateFile
	for name, c := range map[string]struct {
		files TLS
		want  string
	}{
		"expired":               {old, "expired"},
		"key open to the group": {bareKey, "chmod 600"},
		"another's key":         {mixed, "private key does not match"},
		"a leaf as authority":   {notCA, "not the certificate of an authority"},
		"nothing named":         {TLS{}, "certificate_file"},
	} {
		for _, f := range []func(TLS) (*tls.Config, error){ServerTLS, ClientTLS} {
			if _, err := f(c.files); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
	}
}

// handshake returns the first error of either side; the server's refusal of a
// client certificate reaches a TLS 1.3 client with its first read.
func handshake(t *testing.T, sc, cc *tls.Config) error {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, sc)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, cc)
	_, err := io.ReadFull(c, make([]byte, 1))
	b.Close()
	return errors.Join(err, <-done)
}

func TestPublicKeys(t *testing.T) {
	t.Parallel()
	block := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	ec := func(c elliptic.Curve) *ecdsa.PublicKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &k.PublicKey
	}
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	k1, k2 := ec(elliptic.P256()), ec(elliptic.P256())
	got, err := PublicKeys(write(t, "keys", block(k1)+"\n"+block(k2), 0o644))
	if err != nil || len(got) != 2 || !got[0].Equal(k1) || !got[1].Equal(k2) {
		t.Fatalf("%v, %v", got, err)
	}
	for name, content := range map[string]string{
		"empty":          "",
		"not PEM":        "key",
		"P-384":          block(ec(elliptic.P384())),
		"RSA":            block(k1) + block(&rk.PublicKey),
		"other type":     strings.ReplaceAll(block(k1), "PUBLIC", "PRIVATE"),
		"damaged block":  block(k1) + strings.Replace(block(k2), "END PUBLIC", "END PUBIC", 1),
		"damaged base64": strings.Replace(block(k1), "M", "!", 1) + block(k2),
	} {
		if _, err := PublicKeys(write(t, "keys", content, 0o644)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzDecode: no panic, and whatever is accepted is written back and read
// back equal.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(gatewayYAML))
	f.Add([]byte(cryptoserverYAML))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("listen: !!binary x\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		var g Gateway
		if decode(raw, &g) != nil || g.Validate() != nil {
			return
		}
		path := filepath.Join(dir, "f.yaml")
		if err := Write(path, g); err != nil {
			t.Fatal(err)
		}
		resolve(reflect.ValueOf(&g).Elem(), dir)
		got, err := Load[Gateway](path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, g) {
			t.Fatalf("read back\n%+v\nwant\n%+v", got, g)
		}
	})
}
