package server

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"keystead/accounts"
	"keystead/identity"
	"keystead/tokens"
)

// userTokens is the tokens package as accounts uses it.
type userTokens struct{ *tokens.Service }

var userTokenKinds = map[accounts.TokenKind]tokens.Kind{
	accounts.LoginToken: tokens.Login, accounts.AccessToken: tokens.Access, accounts.IDToken: tokens.Identity,
}

// Issue implements [accounts.Tokens].
func (u userTokens) Issue(t accounts.Token) (string, accounts.Token, error) {
	text, made, err := u.Service.Issue(userTokenKinds[t.Kind], tokens.New{
		ID: t.ID, Subject: t.Subject, Org: t.Org, Epoch: t.Epoch, TTL: t.TTL, Audience: t.Audience, Extra: t.Extra,
	})
	t.ID, t.ExpiresAt = made.ID, made.ExpiresAt
	return text, t, err
}

// Verify implements [accounts.Tokens].
func (u userTokens) Verify(text string) (accounts.Token, error) {
	if !u.mine(text) {
		return accounts.Token{}, identity.ErrNotMine
	}
	t, err := u.Service.Verify(text, tokens.Login, tokens.Access)
	if err != nil {
		return accounts.Token{}, err
	}
	out := accounts.Token{
		Kind: accounts.LoginToken, ID: t.ID, Subject: t.Subject, Org: t.Org, Epoch: t.Epoch, ExpiresAt: t.ExpiresAt, Extra: map[string]any{},
	}
	if t.Kind == tokens.Access {
		out.Kind = accounts.AccessToken
	}
	for _, claim := range accounts.TokenClaims {
		if v := t.Claim(claim); v != nil {
			out.Extra[claim] = v
		}
	}
	return out, nil
}

// mine reports whether text says it is a login or access token of this server.
// Nothing is believed of it: it only decides who is to judge.
func (u userTokens) mine(text string) bool {
	if kind, known := u.Known(text); known {
		return kind == tokens.Login || kind == tokens.Access
	}
	parts := strings.Split(text, ".")
	if len(text) > maxUserToken || !tokens.Looks(text) {
		return false
	}
	var head struct {
		Type string `json:"typ"`
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	return peek(parts[0], &head) && peek(parts[1], &claims) && claims.Issuer == u.Config.Issuer &&
		(head.Type == tokens.Login.Type || head.Type == tokens.Access.Type)
}

// maxUserToken is the longest token looked at, in bytes.
const maxUserToken = 8 << 10

func peek(part string, v any) bool {
	b, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(b, v) == nil
}
