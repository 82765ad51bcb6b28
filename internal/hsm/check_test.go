package hsm_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"github.com/miekg/pkcs11"
)

// checkable is a token of this test alone, ready to be checked.
func checkable(t *testing.T) hsm.CheckOptions {
	t.Helper()
	world := hsmtest.New(t)
	o := hsm.CheckOptions{Module: world.Module, Token: spare(world), Quick: true}
	if err := hsm.InitToken(o.Module, o.Token, filepath.Join(world.Dir, "so-pin")); err != nil {
		t.Fatal(err)
	}
	return o.Tune(hsm.CheckTuning{Bits: 1024})
}

func check(t *testing.T, o hsm.CheckOptions) *hsm.CheckReport {
	t.Helper()
	r, err := hsm.Check(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func requirement(t *testing.T, r *hsm.CheckReport, id string) hsm.CheckRequirement {
	t.Helper()
	for _, q := range r.Requirements {
		if q.ID == id {
			return q
		}
	}
	t.Fatalf("no requirement %s in the report", id)
	return hsm.CheckRequirement{}
}

func verdicts(r *hsm.CheckReport) map[hsm.Role]string {
	v := map[hsm.Role]string{}
	for _, role := range r.Roles {
		v[role.Role] = role.Verdict
	}
	return v
}

// labelsOn is what lies on the token, without going through a module with faults.
func labelsOn(t *testing.T, token hsm.Token) []string {
	t.Helper()
	labels, err := hsm.TokenLabels(hsmtest.New(t).Module, token)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(labels)
	return labels
}

// TestCheck checks SoftHSM with everything there is: what it finds, the
// report's JSON, and that the token is as it was but for an interrupted
// check's leftovers.
func TestCheck(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	o := checkable(t).Tune(hsm.CheckTuning{Bits: 3072, Rounds: 2000})
	o.Quick, o.SOPINFile = false, filepath.Join(world.Dir, "so-pin")
	for _, label := range []string{"kluis/kek/1", "kluis/check", "kluis/check/kek-open", "kluis/check/kek-open", "kluis/check/transport"} {
		if err := hsm.PlantObject(o.Module, o.Token, label); err != nil {
			t.Fatal(err)
		}
	}
	r := check(t, o)
	if got, want := labelsOn(t, o.Token), []string{"kluis/check", "kluis/kek/1"}; !slices.Equal(got, want) {
		t.Errorf("on the token: %q, want %q", got, want)
	}
	if !strings.Contains(requirement(t, r, "login").Found, "3 objects of an interrupted check were destroyed") {
		t.Errorf("leftovers: %s", requirement(t, r, "login").Found)
	}
	if !r.Fit || r.Recommended.Workers < 1 || r.Recommended.KeyCacheSize != 4096 {
		t.Errorf("fit %v, %+v", r.Fit, r.Recommended)
	}
	for _, q := range r.Requirements {
		if q.Result == hsm.CheckFail || q.Result == hsm.CheckNotTried || q.Result == hsm.CheckLeftOut {
			t.Errorf("%s %s: %s", q.Result, q.ID, q.Found)
		}
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"LIMITED    who makes the IV: the host", "LIMITED    seal   iv-policy", "FIT        rotate", "FIT: no requirement that was tried fails."} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q", want)
		}
	}
	golden(t, r)
}

// golden compares the report's JSON with testdata/check.golden.json, but for
// what is of this machine and moment.
func golden(t *testing.T, r *hsm.CheckReport) {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	m["module"] = blank(m["module"])
	m["token"] = blank(m["token"])
	m["recommended"] = blank(m["recommended"])
	for _, q := range m["requirements"].([]any) {
		q := q.(map[string]any)
		if f, ok := q["figures"]; ok {
			q["figures"] = blank(f)
		}
		switch q["id"] {
		case "latency", "scaling", "memory":
			q["result"], q["found"], q["means"], q["do"] = "", "", "", ""
		}
	}
	for _, q := range m["quirks"].([]any) {
		if q := q.(map[string]any); q["id"] == "one-engine" || q["id"] == "leaks" {
			q["shows"] = ""
		}
	}
	got, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/check.golden.json"
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, bytes.TrimSpace(want)) {
		t.Errorf("the report is another than %s (write it anew with -update if that is meant):\n%s", file, got)
	}
}

// blank keeps the names in an object and drops the values.
func blank(v any) any {
	for k, x := range v.(map[string]any) {
		if _, number := x.(float64); number {
			v.(map[string]any)[k] = 0
		} else {
			v.(map[string]any)[k] = ""
		}
	}
	return v
}

// TestCheckFaults: a module that cannot do something, or hangs, is reported so,
// in time, and what was made is destroyed.
func TestCheckFaults(t *testing.T) {
	t.Parallel()
	const fit, unfit = "FIT", "UNFIT"
	for name, c := range map[string]struct {
		inject   func(f *faulty)
		fails    []string
		says     string
		verdicts map[hsm.Role]string
		left     bool // objects may be left
	}{
		"no AES-GCM": {func(f *faulty) {
			f.fail(fnEncryptInit, pkcs11.CKR_MECHANISM_INVALID, -1)
			f.fail(fnDecryptInit, pkcs11.CKR_MECHANISM_INVALID, -1)
		}, []string{"gcm-decrypt", "gcm-encrypt", "iv-policy"}, "CKR_MECHANISM_INVALID",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: fit, hsm.RoleSign: fit}, false},
		"no wrapping": {func(f *faulty) { f.fail(fnWrapKey, pkcs11.CKR_MECHANISM_INVALID, -1) },
			[]string{"oaep-sha1", "aes-key-wrap", "kek-open", "kek-seal", "kek-mint"}, "CKR_MECHANISM_INVALID",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: fit}, false},
		// An attack that fails for no reason proves nothing.
		"wrapping fails": {func(f *faulty) { f.fail(fnWrapKey, pkcs11.CKR_FUNCTION_FAILED, -1) },
			[]string{"oaep-sha1", "ecdsa"}, "could not be told: CKR_FUNCTION_FAILED",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"no signatures": {func(f *faulty) { f.fail(fnSignInit, pkcs11.CKR_MECHANISM_INVALID, -1) },
			[]string{"hmac", "ecdsa"}, "CKR_MECHANISM_INVALID",
			map[hsm.Role]string{hsm.RoleOpen: fit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"damaged data looks like a broken token": {func(f *faulty) { f.inject(fnDecrypt, faultReturn, pkcs11.CKR_DEVICE_ERROR, 10, 1) },
			[]string{"gcm-bad-data"}, "CKR_DEVICE_ERROR",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: "LIMITED", hsm.RoleMint: fit, hsm.RoleSign: fit}, false},
		"no random numbers": {func(f *faulty) { f.fail(fnGenerateRandom, pkcs11.CKR_RANDOM_NO_RNG, 1) },
			[]string{"rng"}, "CKR_RANDOM_NO_RNG",
			map[hsm.Role]string{hsm.RoleOpen: fit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: fit}, false},
		"the token makes the IV": {func(f *faulty) { f.inject(fnEncryptInit, faultLie, 0, 0, -1) },
			[]string{"iv-policy"}, "the token makes it, 12 bytes, and writes it into pIv",
			map[hsm.Role]string{hsm.RoleSeal: unfit, hsm.RoleMint: fit, hsm.RoleSign: fit}, false},
		"lets keys be changed": {func(f *faulty) { f.inject(fnSetAttributeValue, faultLie, pkcs11.CKR_ACTION_PROHIBITED, 0, -1) },
			[]string{"hmac", "ecdsa", "modifiable", "data-key"}, "making it modifiable",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"lets keys be read": {func(f *faulty) { f.inject(fnGetAttributeValue, faultLie, pkcs11.CKR_ATTRIBUTE_SENSITIVE, 0, -1) },
			[]string{"hmac", "ecdsa", "sensitive", "data-key"}, "reading a data key (open)",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"lets keys be wrapped": {func(f *faulty) { f.inject(fnWrapKey, faultLie, pkcs11.CKR_KEY_UNEXTRACTABLE, 0, -1) },
			[]string{"hmac", "ecdsa", "sensitive", "data-key"}, "wrapping the KEK out (mint)",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"the second login fails": {func(f *faulty) { f.inject(fnLogin, faultReturn, pkcs11.CKR_FUNCTION_FAILED, 1, 1) },
			[]string{"logout", "nothing-left"}, "the user is not logged in any more", nil, true},
		"a decryption hangs": {func(f *faulty) { f.inject(fnDecrypt, faultHang, 1, 6, 1) },
			nil, "C_Decrypt with CKM_AES_GCM did not return within",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"the login hangs": {func(f *faulty) { f.hang(fnLogin, -1) },
			[]string{"login"}, "C_Login) did not return within",
			map[hsm.Role]string{hsm.RoleOpen: unfit, hsm.RoleSeal: unfit, hsm.RoleMint: unfit, hsm.RoleSign: unfit}, false},
		"destroying hangs": {func(f *faulty) { f.hang(fnDestroyObject, -1) },
			[]string{"hmac", "nothing-left"}, "did not return within",
			nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := checkable(t).Tune(hsm.CheckTuning{Bits: 1024, Call: 10 * time.Second, Clear: 5 * time.Second})
			keepInitialised(t)
			module, f := newFaulty(t)
			o.Module = module
			c.inject(f)
			start := time.Now()
			r := check(t, o)
			if took := time.Since(start); took > time.Minute {
				t.Errorf("it took %s", took)
			}
			if r.Fit {
				t.Error("the token is reported as fit")
			}
			said := false
			for _, q := range r.Requirements {
				said = said || q.Result == hsm.CheckFail && strings.Contains(q.Found, c.says) && q.Means != ""
			}
			if !said {
				t.Errorf("nothing says %q", c.says)
			}
			for _, id := range c.fails {
				if q := requirement(t, r, id); q.Result != hsm.CheckFail || q.Found == "" || q.Do == "" {
					t.Errorf("%s: %s %q, do %q", id, q.Result, q.Found, q.Do)
				}
			}
			got := verdicts(r)
			for role, want := range c.verdicts {
				// The IV policy limits, what else is as it should be is fit.
				if got[role] != want && !(want == fit && got[role] == "LIMITED") {
					t.Errorf("%s: %s, want %s: %v", role, got[role], want, r.Roles)
				}
			}
			if len(r.Requirements) != strings.Count(hsm.RequirementTable(), "\n| `") {
				t.Errorf("%d requirements in the report", len(r.Requirements))
			}
			if labels := labelsOn(t, o.Token); (len(labels) > 0) != c.left {
				t.Errorf("left on the token: %q", labels)
			}
			if !c.left {
				return
			}
			for fn := range 68 {
				f.heal(fn)
			}
			if again := check(t, o); !again.Fit || len(labelsOn(t, o.Token)) > 0 {
				t.Errorf("after the next check: %v; left on the token: %q", again.Roles, labelsOn(t, o.Token))
			}
		})
	}
}

// TestCheckWeakToken: a token that does not enforce an attribute fails.
func TestCheckWeakToken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		weaken func([]*pkcs11.Attribute) []*pkcs11.Attribute
		fails  string
	}{
		"no unwrap template": {without(pkcs11.CKA_UNWRAP_TEMPLATE), "unwrap-template"},
		"modifiable":         {without(pkcs11.CKA_MODIFIABLE), "modifiable"},
		"copyable": {func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
			return without(pkcs11.CKA_MODIFIABLE)(without(pkcs11.CKA_COPYABLE)(as))
		}, "copyable"},
		"decrypts": {func(as []*pkcs11.Attribute) []*pkcs11.Attribute {
			return set(pkcs11.CKA_DECRYPT, true)(without(pkcs11.CKA_ALLOWED_MECHANISMS)(as))
		}, "allowed-mechanisms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := check(t, checkable(t).Tune(hsm.CheckTuning{Bits: 1024, Weaken: c.weaken}))
			if q := requirement(t, r, c.fails); q.Result != hsm.CheckFail || !strings.Contains(q.Found, "succeeded") {
				t.Errorf("%s: %s, %s", c.fails, q.Result, q.Found)
			}
			if r.Fit || verdicts(r)[hsm.RoleOpen] != "UNFIT" || verdicts(r)[hsm.RoleSign] != "FIT" {
				t.Errorf("fit %v, %v", r.Fit, verdicts(r))
			}
		})
	}
}

// TestCheckLimits: a token that holds few sessions and few keys is used within
// its limits.
func TestCheckLimits(t *testing.T) {
	t.Parallel()
	o := checkable(t).Tune(hsm.CheckTuning{Bits: 1024, Rounds: 100})
	o.Quick = false
	keepInitialised(t)
	module, f := newFaulty(t)
	o.Module = module
	o.Progress = func(requirement string) {
		f.heal(fnOpenSession)
		switch requirement {
		case "number of sessions": // one is the requirement's own
			f.inject(fnOpenSession, faultReturn, pkcs11.CKR_SESSION_COUNT, 1+12, -1)
		case "number of data keys":
			f.inject(fnUnwrapKey, faultReturn, pkcs11.CKR_DEVICE_MEMORY, 1000, 1)
		}
	}
	r := check(t, o)
	for id, want := range map[string][2]string{
		"sessions":  {"12 more can be open at a time, then", "At most 4 workers."},
		"data-keys": {"1000 data keys at a time, then C_UnwrapKey: CKR_DEVICE_MEMORY", "key_cache.size must be 500 at most"},
	} {
		if q := requirement(t, r, id); q.Result != hsm.CheckLimited || !strings.Contains(q.Found, want[0]) || !strings.Contains(q.Means, want[1]) {
			t.Errorf("%s: %s, %q, %q", id, q.Result, q.Found, q.Means)
		}
	}
	if !r.Fit || r.Recommended.KeyCacheSize != 500 || r.Recommended.Workers > 4 || strings.Contains(requirement(t, r, "scaling").Found, "8: ") {
		t.Errorf("fit %v, %+v, %s", r.Fit, r.Recommended, requirement(t, r, "scaling").Found)
	}
}

// TestCheckAttacks: every start-up attack is of some requirement, and every
// such requirement has attacks on each role's KEK.
func TestCheckAttacks(t *testing.T) {
	t.Parallel()
	for _, role := range []hsm.Role{hsm.RoleOpen, hsm.RoleSeal, hsm.RoleMint} {
		kinds := hsm.AttackKinds(role)
		for _, id := range []string{"unwrap-template", "modifiable", "copyable", "sensitive", "allowed-mechanisms"} {
			if kinds[id] == 0 {
				t.Errorf("%s: no attack of %s", role, id)
			}
		}
		uses := 3 // decrypting, encrypting, wrapping
		if role == hsm.RoleMint {
			uses = 2
		}
		if kinds["allowed-mechanisms"] != uses {
			t.Errorf("%s: %d attacks fall to allowed-mechanisms; name their requirement", role, kinds["allowed-mechanisms"])
		}
	}
}

// TestCheckCannotBegin: what is wrong with the question, and one try of a PIN.
func TestCheckCannotBegin(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	o := checkable(t)
	twin := checkable(t)
	if err := hsm.InitToken(twin.Module, twin.Token, filepath.Join(world.Dir, "so-pin")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*hsm.CheckOptions)
		says   string
	}{
		"no label":         {func(o *hsm.CheckOptions) { o.Token.Label = "" }, "must have 1 to 32 characters"},
		"missing module":   {func(o *hsm.CheckOptions) { o.Module = filepath.Join(dir, "none.so") }, "no such file"},
		"not a module":     {func(o *hsm.CheckOptions) { o.Module = file("text.so", "x", 0o600) }, "cannot be loaded"},
		"unknown token":    {func(o *hsm.CheckOptions) { o.Token.Label = "nobody" }, "no token labelled nobody; it shows"},
		"two of one label": {func(o *hsm.CheckOptions) { o.Token.Label = twin.Token.Label }, "2 tokens are labelled"},
		"no PIN file":      {func(o *hsm.CheckOptions) { o.Token.PINFile = filepath.Join(dir, "none") }, "reading a PIN"},
		"PIN for all":      {func(o *hsm.CheckOptions) { o.Token.PINFile = file("open-pin", hsmtest.PIN, 0o644) }, "can be accessed by others than its owner"},
		"SO PIN for all":   {func(o *hsm.CheckOptions) { o.SOPINFile = file("open-so-pin", hsmtest.SOPIN, 0o640) }, "can be accessed by others than its owner"},
	} {
		t.Run(name, func(t *testing.T) {
			o := o
			c.change(&o)
			if _, err := hsm.Check(t.Context(), o); !errors.Is(err, hsm.ErrCannotCheck) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}

	keepInitialised(t)
	module, f := newFaulty(t)
	wrong := o
	wrong.Module, wrong.Token.PINFile = module, file("wrong-pin", "not-this\n", 0o600)
	_, err := hsm.Check(t.Context(), wrong)
	if !errors.Is(err, hsm.ErrCannotCheck) || !strings.Contains(err.Error(), "presented once and not accepted") || strings.Contains(err.Error(), "not-this") {
		t.Errorf("wrong PIN: %v", err)
	}
	if n := f.calls(fnLogin); n != 1 {
		t.Errorf("a wrong PIN was presented %d times", n)
	}
	r := check(t, o)
	if q := requirement(t, r, "pin-counters"); q.Result != hsm.CheckLimited || !strings.Contains(q.Found, "cleared by this login") {
		t.Errorf("after a wrong PIN: %s, %s", q.Result, q.Found)
	}

	o.SOPINFile = file("wrong-so-pin", "nor-this\n", 0o600)
	r = check(t, o)
	if q := requirement(t, r, "trusted"); r.Fit || q.Result != hsm.CheckFail || !strings.Contains(q.Found, "presented once and not accepted") {
		t.Errorf("wrong SO PIN: %s, %s", q.Result, q.Found)
	}
	if labels := labelsOn(t, o.Token); len(labels) > 0 {
		t.Errorf("left on the token: %q", labels)
	}
}

// TestCheckInterrupted: a check that is interrupted anywhere leaves nothing.
func TestCheckInterrupted(t *testing.T) {
	t.Parallel()
	o := checkable(t)
	o.SOPINFile = filepath.Join(hsmtest.New(t).Dir, "so-pin")
	for _, at := range []string{"RSA transport key", "answers to damaged data", "mint, seal, open", "wrapping under trusted keys only"} {
		ctx, cancel := context.WithCancel(t.Context())
		seen := false
		o.Progress = func(requirement string) {
			if requirement == at {
				seen = true
				cancel()
			}
		}
		r, err := hsm.Check(ctx, o)
		cancel()
		if !seen || r != nil || !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "may be left") {
			t.Errorf("at %s (seen: %v): %v", at, seen, err)
		}
		if labels := labelsOn(t, o.Token); len(labels) > 0 {
			t.Errorf("at %s: left on the token: %q", at, labels)
		}
	}
}

// The vector of RFC 3394, clause 4.6.
func TestRFC3394(t *testing.T) {
	t.Parallel()
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	kek := unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	wrapped := unhex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
	key, err := hsm.RFC3394Unwrap(kek, wrapped)
	if err != nil || hex.EncodeToString(key) != "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f" {
		t.Errorf("%x, %v", key, err)
	}
	wrapped[3] ^= 1
	if _, err := hsm.RFC3394Unwrap(kek, wrapped); err == nil {
		t.Error("a damaged key unwraps")
	}
	if _, err := hsm.RFC3394Unwrap(kek, wrapped[:23]); err == nil {
		t.Error("a short key unwraps")
	}
}

// TestRequirementTable keeps the table of docs/HSM.md true.
func TestRequirementTable(t *testing.T) {
	t.Parallel()
	const page, begin, end = "../../docs/HSM.md", "-update -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	table, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	want := hsm.RequirementTable()
	if *update && table != want {
		if err := os.WriteFile(page, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		table = want
	}
	if table != want {
		t.Errorf("the table in %s is not what is checked; write it anew with -update:\n%s", page, want)
	}
}
