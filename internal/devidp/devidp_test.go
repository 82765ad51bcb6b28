package devidp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

// What another library reads and verifies is what was asked for.
func TestIDToken(t *testing.T) {
	t.Parallel()
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keyfunc.NewJWKSetJSON(p.JWKS())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	raw, err := p.IDToken("eva", now, "agent", "auditor")
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		jwt.RegisteredClaims
		Roles    []string
		AuthTime int64 `json:"auth_time"`
	}
	if _, err := jwt.ParseWithClaims(raw, &claims, keys.Keyfunc, jwt.WithIssuer(URL), jwt.WithAudience(Audience), jwt.WithExpirationRequired(), jwt.WithValidMethods([]string{"ES256"})); err != nil {
		t.Fatal(err)
	}
	if claims.Subject != "eva" || len(claims.Roles) != 2 || claims.AuthTime != now.Unix() || claims.ExpiresAt.Unix() != now.Add(Lifetime).Unix() {
		t.Errorf("%+v", claims)
	}

	raw, err = p.Sign(map[string]any{"aud": "x", "iss": nil})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(payload, &m); err != nil || len(m) != 1 || m["aud"] != "x" {
		t.Errorf("%s, %v", payload, err)
	}
}

func TestLoadOrCreate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	a, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(JWKSFile(dir))
	if err != nil || !bytes.Equal(a.JWKS(), b.JWKS()) || !bytes.Equal(file, a.JWKS()) {
		t.Errorf("the key is not kept: %v", err)
	}
	if info, err := os.Stat(KeyFile(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(KeyFile(dir), []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(dir); err == nil {
		t.Error("a damaged key was replaced")
	}
}
