package kluis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// tokens keeps an access token that is bound to the client certificate of its
// HTTP client (RFC 8705), and gets a new one before that one expires.
type tokens struct {
	http               *http.Client
	url, client, scope string
	now                func() time.Time

	mu      sync.Mutex // held while a token is got: one at a time
	token   string
	expires time.Time
	life    time.Duration // of tokens, as the issuer last said
}

// TokenError is a refusal of the issuer (RFC 6749, 5.2).
type TokenError struct {
	Status      int    `json:"-"`
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func (e *TokenError) Error() string {
	return fmt.Sprintf("the issuer gives no token: %d %s: %s", e.Status, e.Code, e.Description)
}

// permanent: a new try of a request that failed without an answer would fail
// alike, because of who asks or whom.
func permanent(err error) bool {
	var refused *TokenError
	if errors.As(err, &refused) {
		return refused.Status < 500 && refused.Status != http.StatusTooManyRequests
	}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	return errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid) || errors.As(err, &alert) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// get returns a token that lives a while yet: as a rule a fifth of its life,
// or as long as is asked for, if any token does.
func (t *tokens) get(ctx context.Context, least time.Duration) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Of one that lives five minutes the last minute is not used; of none more
	// than four fifths, or each request would get its own.
	least = min(max(least, t.life/5), t.life*4/5)
	if t.token != "" && t.expires.Sub(t.now()) > least {
		return t.token, nil
	}
	err := t.renew(ctx)
	return t.token, err
}

// drop forgets a token that was not accepted, if it is still the present one.
func (t *tokens) drop(authorization string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if authorization == "Bearer "+t.token {
		t.token = ""
	}
}

func (t *tokens) renew(ctx context.Context) error {
	t.token = ""
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {t.client}}
	if t.scope != "" {
		form.Set("scope", t.scope)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	asked := t.now()
	res, err := t.http.Do(req)
	if err != nil {
		return fmt.Errorf("the issuer: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("the issuer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		refused := &TokenError{}
		_ = json.Unmarshal(body, refused) // what is no JSON leaves the status
		refused.Status = res.StatusCode
		return refused
	}
	var got struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &got); err != nil || got.AccessToken == "" || got.ExpiresIn <= 0 {
		return errors.New("the issuer answers with no token that lives")
	}
	t.life = time.Duration(got.ExpiresIn) * time.Second
	t.token, t.expires = got.AccessToken, asked.Add(t.life)
	return nil
}
