package authn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestBearer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		values []string
		want   string
		kind   error
		reason string
	}{
		{"good", []string{"Bearer abc.def-_~+/9=="}, "abc.def-_~+/9==", nil, ""},
		{"scheme in lower case", []string{"bearer abc"}, "abc", nil, ""},
		{"scheme in mixed case", []string{"bEaReR abc"}, "abc", nil, ""},
		{"longest", []string{"Bearer " + strings.Repeat("a", MaxTokenLength)}, strings.Repeat("a", MaxTokenLength), nil, ""},
		{"none", nil, "", ErrNoToken, "no_authorization_header"},
		{"other scheme", []string{"Basic YTpi"}, "", ErrNoToken, "other_scheme"},
		{"no scheme", []string{"abc"}, "", ErrNoToken, "other_scheme"},
		{"empty", []string{""}, "", ErrNoToken, "other_scheme"},
		{"DPoP", []string{"DPoP abc"}, "", ErrNoToken, "other_scheme"},
		{"two headers", []string{"Bearer abc", "Bearer abc"}, "", ErrInvalidToken, "several_authorization_headers"},
		{"two headers, one empty", []string{"Bearer abc", ""}, "", ErrInvalidToken, "several_authorization_headers"},
		{"two tokens", []string{"Bearer abc, Bearer def"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"two tokens, comma", []string{"Bearer abc,def"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"no token", []string{"Bearer"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"empty token", []string{"Bearer "}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"padding only", []string{"Bearer =="}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"padding inside", []string{"Bearer a=b"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"two spaces", []string{"Bearer  abc"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"space after", []string{"Bearer abc "}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"tab", []string{"Bearer\tabc"}, "", ErrNoToken, "other_scheme"},
		{"quotes", []string{`Bearer "abc"`}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"NUL", []string{"Bearer abc\x00"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"not ASCII", []string{"Bearer é"}, "", ErrInvalidToken, "malformed_authorization_header"},
		{"too long", []string{"Bearer " + strings.Repeat("a", MaxTokenLength+1)}, "", ErrInvalidToken, "oversized"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			for _, v := range c.values {
				h.Add("Authorization", v)
			}
			got, err := Bearer(h)
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if c.kind == nil && err != nil {
				t.Error(err)
			} else if c.kind != nil {
				refused(t, err, c.kind, c.reason)
			}
		})
	}
}

func TestLeafThumbprintNeedsAVerifiedChain(t *testing.T) {
	t.Parallel()
	crt := &x509.Certificate{Raw: []byte("the client certificate")}
	good := tls.ConnectionState{
		HandshakeComplete: true,
		PeerCertificates:  []*x509.Certificate{crt},
		VerifiedChains:    [][]*x509.Certificate{{crt}},
	}
	if got, err := LeafThumbprint(&good); err != nil || got != leaf {
		t.Fatalf("%x, %v", got, err)
	}
	unverified, early, none := good, good, good
	unverified.VerifiedChains = nil
	early.HandshakeComplete = false
	none.PeerCertificates, none.VerifiedChains = nil, nil
	for name, s := range map[string]*tls.ConnectionState{
		"plain": nil, "unverified": &unverified, "handshake not complete": &early, "no certificate": &none,
	} {
		if _, err := LeafThumbprint(s); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer abc", "bearer a==", "Bearer  a", "Basic x", "Bearer a,b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := Bearer(http.Header{"Authorization": {value}})
		if err != nil {
			if got != "" || !(errors.Is(err, ErrNoToken) || errors.Is(err, ErrInvalidToken)) {
				t.Fatalf("%q, %v", got, err)
			}
			return
		}
		if len(value) != 7+len(got) || !strings.EqualFold(value[:7], "Bearer ") || value[7:] != got ||
			strings.ContainsAny(got, " \t\r\n\",;") || len(got) > MaxTokenLength || got == "" {
			t.Fatalf("%q taken from %q", got, value)
		}
	})
}
