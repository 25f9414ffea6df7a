"""How the page of the documents looks, light and dark, on wide screens and on telephones; and the headers that allow it
this style and nothing else."""

from __future__ import annotations

import base64
from hashlib import sha256

CSS = """
:root{color-scheme:light dark;--text:#1c2128;--soft:#59636e;--line:#d9dee4;--back:#fff;--panel:#f5f7f9;--link:#0757b5;
--get:#11703c;--post:#0757b5;--delete:#b3261e}
@media(prefers-color-scheme:dark){:root{--text:#e3e7ec;--soft:#9aa4af;--line:#30373f;--back:#14171b;--panel:#1d2228;--link:#79b4ff;
--get:#62cf8e;--post:#79b4ff;--delete:#ff8a80}}
*{box-sizing:border-box}html{scroll-padding-top:1rem}
body{margin:0;font:16px/1.55 system-ui,sans-serif;color:var(--text);background:var(--back)}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
main{max-width:60rem;padding:1.5rem 2rem 6rem;min-width:0}
h1{font-size:1.8rem;line-height:1.2;margin:.5rem 0 1rem}
h2{font-size:1.4rem;margin:3.5rem 0 1rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1.05rem;margin:2rem 0 .4rem}h3 a{color:inherit;font-family:ui-monospace,monospace}p{margin:.5rem 0 .8rem}
.lead{font-size:1.05rem}.gives,small,th{color:var(--soft)}small{display:block;font-size:.8rem}
code,pre{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--panel);border-radius:5px}
code{padding:.12em .35em;overflow-wrap:anywhere}
pre{padding:.8rem 1rem;overflow-x:auto;border:1px solid var(--line);margin:.6rem 0}
pre code{padding:0;background:none;overflow-wrap:normal;font-size:1em}
i{font:700 .75em/1 ui-monospace,monospace;letter-spacing:.03em}
.get{color:var(--get)}.post{color:var(--post)}.delete{color:var(--delete)}
section{padding:.2rem 0 .6rem}h2+section h3{margin-top:1rem}section+section{border-top:1px solid var(--line)}
summary{cursor:pointer;color:var(--link);padding:.2rem 0}summary code{color:inherit}
table{border-collapse:collapse;width:100%;font-size:.925rem;margin:.4rem 0 1rem}
td,th{border-bottom:1px solid var(--line);padding:.4rem .8rem .4rem 0;text-align:left;vertical-align:top}
th{font-weight:600;font-size:.85rem}td:first-child{width:34%}td:nth-child(2){width:26%}
:target>h3 a,div:target{background:color-mix(in srgb,var(--link) 12%,transparent)}
nav{padding:1rem;border-bottom:1px solid var(--line);background:var(--panel);line-height:2}
nav ul{display:inline;list-style:none;margin:0;padding:0}nav li{display:inline}nav a{display:inline-block;margin-right:1rem}
nav li ul{display:none}
@media(min-width:64rem){
body{display:grid;grid-template-columns:20rem 1fr}
nav{position:sticky;top:0;height:100vh;overflow-y:auto;border:0;
border-right:1px solid var(--line);padding:1.5rem 1.2rem;line-height:1.5}
nav ul,nav li,nav li ul,nav a{display:block;margin:0}nav>a,nav>ul>li>a{font-weight:600;margin-top:.7rem}
nav li li a{font-size:.84rem;color:var(--text);padding:.1rem 0;overflow:hidden;text-overflow:ellipsis}
nav i{display:inline-block;width:3.4rem;font-size:.68rem}
main{padding:1.5rem 3rem 6rem}}
@media(max-width:40rem){
main{padding:1rem 1rem 4rem}thead{display:none}
tr{display:block;padding:.5rem 0;border-bottom:1px solid var(--line)}
td,td:first-child,td:nth-child(2){display:block;width:auto;border:0;padding:.05rem 0}
td:nth-child(2){color:var(--soft);font-size:.85rem}
small{display:inline;margin-left:.4rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin-left:-1rem;margin-right:-1rem;border-radius:0;border-left:0;border-right:0}
pre code{overflow-wrap:anywhere}}
""".replace("\n", "")

_DIGEST = base64.b64encode(sha256(CSS.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'",
    "referrer-policy": "no-referrer",
}
