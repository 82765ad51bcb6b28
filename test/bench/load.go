package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"kluis/internal/config"
)

// client is a supplier: it keeps its connections, and a token while it lives.
type client struct {
	http     *http.Client
	issuer   string
	id       string
	token    string
	tokenEnd time.Time
}

func newClient(caFile, certFile, keyFile, issuer, id string) (*client, error) {
	roots, err := config.CertPool(caFile)
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return &client{issuer: issuer, id: id, http: &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}},
			MaxIdleConnsPerHost: 64,
			DisableCompression:  true, // as on the floor
		},
	}}, nil
}

// authorise gets a token that lives for at least two minutes more.
func (c *client) authorise(ctx context.Context) error {
	if time.Until(c.tokenEnd) > 2*time.Minute {
		return nil
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.id}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.issuer+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		Token   string `json:"access_token"`
		Expires int    `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil || answer.Token == "" {
		return errors.Join(fmt.Errorf("token: %s", res.Status), err)
	}
	c.token, c.tokenEnd = answer.Token, time.Now().Add(time.Duration(answer.Expires)*time.Second)
	return nil
}

// get makes one request and reads the whole answer.
func (c *client) get(ctx context.Context, url string, read func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 2000))
		return fmt.Errorf("%s\n%s", res.Status, b)
	}
	return read(res)
}

// load asks for url from n goroutines until the time is over. Every answer
// must have the length of the first.
func (c *client) load(ctx context.Context, url string, size int, d time.Duration, n int) ([]time.Duration, time.Duration, error) {
	return repeat(d, n, func(int) error {
		return c.get(ctx, url, func(res *http.Response) error {
			got, err := io.Copy(io.Discard, res.Body)
			if err == nil && got != int64(size) {
				err = fmt.Errorf("an answer of %d bytes instead of %d", got, size)
			}
			return err
		})
	})
}

// repeat runs f on n goroutines, which are numbered, until the time is over,
// and returns how long each call took and all of it.
func repeat(d time.Duration, n int, f func(worker int) error) ([]time.Duration, time.Duration, error) {
	began := time.Now()
	end := began.Add(d)
	took := make([][]time.Duration, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		took[i] = make([]time.Duration, 0, 1<<14)
		wg.Go(func() {
			for at := time.Now(); at.Before(end); {
				if errs[i] = f(i); errs[i] != nil {
					return
				}
				now := time.Now()
				took[i] = append(took[i], now.Sub(at))
				at = now
			}
		})
	}
	wg.Wait()
	wall := time.Since(began)
	return slices.Concat(took...), wall, errors.Join(errs...)
}
