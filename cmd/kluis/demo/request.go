package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"kluis/internal/config"
)

// apiClient calls issuer and gateway as one supplier does: with its
// certificate, then with a token.
type apiClient struct {
	http     *http.Client
	ready    *readyFile
	supplier readySupplier
}

func newAPIClient(r *readyFile, s readySupplier) (*apiClient, error) {
	pool, err := config.CertPool(r.CAFile)
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(s.CertificateFile, s.KeyFile)
	if err != nil {
		return nil, err
	}
	return &apiClient{ready: r, supplier: s, http: &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}}},
	}}, nil
}

// readings asks for what one line of access promises and returns the answer,
// indented.
func (c *apiClient) readings(ctx context.Context, ean, purpose, from, to string) ([]byte, error) {
	token, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, readingsURL(c.ready.GatewayURL, ean, purpose, from, to), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	body, err := c.do(req)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, body, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func (c *apiClient) token(ctx context.Context) (string, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.supplier.ClientID}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.ready.IssuerURL+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	body, err := c.do(req)
	if err != nil {
		return "", err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", err
	}
	return answer.AccessToken, nil
}

func (c *apiClient) do(req *http.Request) ([]byte, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s\n%s", req.Method, req.URL.Path, res.Status, body)
	}
	return body, nil
}

func readingsURL(gateway, ean, purpose, from, to string) string {
	q := url.Values{"purpose": {purpose}, "from": {from}, "to": {to}}
	return gateway + "/v1/metering-points/" + ean + "/readings?" + q.Encode()
}
